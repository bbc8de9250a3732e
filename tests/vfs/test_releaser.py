"""Release: all of it goes, nothing else does, and it is read back right."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.core.residency import State
from lazyfs.core.types import Range
from lazyfs.vfs.facts import FactsOf
from lazyfs.vfs.releaser import Releaser
from tests.vfs.building import Knobs, Mount
from tests.vfs.stores import ScriptedStore
from tests.vfs.test_facts import of, room

BLOCK = Knobs().block


def content(name: str, size: int) -> bytes:
    return bytes((ord(name) * 7 + index) % 251 for index in range(size))


def releaser(m: Mount, facts: FactsOf) -> Releaser:
    return Releaser(namespace=m.namespace, facts=facts, fetcher=m.fetcher, cache=m.cache)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=2, max_size=4),
    reads=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200), st.integers(1, 60)), max_size=8),
    released=st.sets(st.integers(0, 3)),
)
def test_what_is_released_is_gone_and_what_is_not_stays(
    sizes: list[int], reads: list[tuple[int, int, int]], released: set[int]
) -> None:
    names = "abcd"[: len(sizes)]

    async def run(path: Path) -> None:
        store = ScriptedStore()
        for name, size in zip(names, sizes, strict=True):
            store.put_now(name, content(name, size))
        async with room(store, path) as (m, facts):
            for number, start, length in reads:
                ino, fh = await m.open(names[number % len(names)])
                await m.fs.read(ino, fh, Range(start, start + length))
                await m.fs.release(ino, fh)
            # What waits to be written to the disk goes as well: it is not waited for here.
            before = {name: (await of(m, facts, name)).resident for name in names}
            chosen = {names[number % len(names)] for number in released}
            inos = {(await m.lookup(name)).ino: name for name in sorted(chosen)}
            outcome = await releaser(m, facts).release(list(inos))
            assert {inos[ino]: size for ino, size in outcome.bytes.items()} == {name: before[name] for name in chosen}
            await m.settle()
            for name in names:
                told = await of(m, facts, name)
                assert told.resident == (0 if name in chosen else before[name])
            for name, size in zip(names, sizes, strict=True):
                assert await m.read(name) == content(name, size)

    with tempfile.TemporaryDirectory() as folder:
        trio.run(run, Path(folder))


async def test_what_the_bucket_does_not_have_is_left_alone(tmp_path: Path) -> None:
    store = ScriptedStore()
    (tmp_path / "spool").mkdir()
    held = store.hold("put")
    async with room(store, tmp_path, spool=tmp_path / "spool", write_back=tmp_path / "waiting") as (m, facts):
        await m.write("waits", b"abc")
        ino, fh = await m.create("open")
        await m.fs.write(ino, fh, 0, b"xyz")
        waits = (await m.lookup("waits")).ino
        outcome = await releaser(m, facts).release([waits, ino, 1, 999])
        assert outcome.bytes == {}
        assert outcome.kept == {
            waits: "is written, or waits for its upload",
            ino: "is written, or waits for its upload",
            1: "is a directory",
            999: "was replaced or deleted meanwhile",
        }
        assert await m.read("waits") == b"abc"
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        held.set()
        await m.settle()
        assert await m.read("open") == b"xyz"
        await m.settle()
        await releaser(m, facts).release([waits, ino])
        assert (await of(m, facts, "open")).state is State.RELEASED
        assert await m.read("open") == b"xyz"


@pytest.mark.parametrize("which", ["f", "g"])
async def test_a_copy_and_what_it_was_copied_from_go_together(tmp_path: Path, which: str) -> None:
    store = ScriptedStore()
    store.put_now("f", content("f", 3 * BLOCK))
    async with room(store, tmp_path) as (m, facts):
        await m.read("f")
        await m.settle()
        if which == "g":
            await m.fs.rename(1, "f", 1, "g", replace=True)
        await releaser(m, facts).release([(await m.lookup(which)).ino])
        assert (await of(m, facts, which)).state is State.RELEASED
        fetched = store.fetched
        assert await m.read(which) == content("f", 3 * BLOCK)
        assert store.fetched == fetched + 3 * BLOCK
