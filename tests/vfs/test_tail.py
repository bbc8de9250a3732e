"""The part of a file that lies in memory only, held against a bytearray."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.warm import WarmMemory
from lazyfs.vfs import tail as tails
from lazyfs.vfs.tail import Tail

ROOM = 60
changes = st.tuples(
    st.sampled_from(["put", "append", "cut", "read", "view", "clear"]), st.integers(0, ROOM), st.binary(max_size=ROOM)
)


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "SMALL_BYTES", 20)


@given(st.binary(max_size=ROOM), st.lists(changes, max_size=20))
def test_it_holds_what_an_array_would(content: bytes, script: list[tuple[str, int, bytes]]) -> None:
    memory = WarmMemory(limit_bytes=10**6)
    tail, model, taken = Tail(content, memory), bytearray(content), list[tuple[memoryview, bytes]]()
    held: list[memoryview] = []
    for verb, at, data in script:
        if verb == "put":
            start = min(at, len(model))
            piece = data[: len(model) - start]
            tail.put(start, piece)
            model[start : start + len(piece)] = piece
        elif verb == "append":
            piece = data[: max(0, ROOM - len(model))]
            tail.append(piece, room=ROOM)
            model += piece
        elif verb == "cut":
            tail.cut(at)
            del model[at:]
        elif verb == "read":
            assert tail.read(at - 5, at + 9) == model[max(0, at - 5) : at + 9]
        elif verb == "view":  # and hold it, as the traceback of an error does
            held.append(tail.view())
        else:
            taken.append((tail.view(), bytes(model)))
            tail.clear()
            model.clear()
        assert len(tail) == len(model)
        assert tail.read(0, ROOM) == model
    assert all(view == was for view, was in taken), "what was taken changed"


def test_a_long_one_lies_in_memory_that_is_used_again() -> None:
    memory = WarmMemory(limit_bytes=10**6)
    tail = Tail(b"", memory)
    for _ in range(3):
        tail.append(b"x" * 30, room=ROOM)
        tail.append(b"y" * 30, room=ROOM)
        part = tail.view()
        tail.clear()
        assert memory.spare_bytes == 0
        assert bytes(part) == b"x" * 30 + b"y" * 30
        del part
        assert memory.spare_bytes == 4096
