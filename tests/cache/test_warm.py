"""Memory that is lent comes back when nobody looks at it any more, and is lent again."""

from __future__ import annotations

import os
import threading

from lazyfs.cache.directio import UNIT, is_aligned
from lazyfs.cache.warm import WarmMemory

SIZE = 3 * UNIT + 5


def test_what_comes_back_is_lent_again() -> None:
    memory = WarmMemory(limit_bytes=100 * UNIT)
    lent = memory.lend(SIZE)
    assert len(lent) == SIZE
    assert not lent.readonly
    assert is_aligned(lent)
    lent[:4] = b"abcd"
    assert memory.spare_bytes == 0
    del lent
    assert memory.spare_bytes == 4 * UNIT
    assert bytes(memory.lend(SIZE)[:4]) == b"abcd"


def test_not_while_somebody_looks_at_a_part_of_it_in_another_thread() -> None:
    memory = WarmMemory(limit_bytes=100 * UNIT)
    piece, go = memory.lend(SIZE)[5:9], threading.Event()
    worker = threading.Thread(target=lambda view: go.wait(5), args=(piece,))
    worker.start()
    del piece
    assert memory.spare_bytes == 0
    go.set()
    worker.join()
    del worker
    assert memory.spare_bytes == 4 * UNIT


def test_two_lenders_never_have_the_same() -> None:
    memory = WarmMemory(limit_bytes=100 * UNIT)
    memory.lend(SIZE)
    one, other = memory.lend(SIZE), memory.lend(SIZE)
    one[:], other[:] = bytes(SIZE), b"x" * SIZE
    assert bytes(one) == bytes(SIZE)


def test_only_so_much_is_kept_and_only_the_same_size_is_lent_again() -> None:
    memory = WarmMemory(limit_bytes=5 * UNIT)
    lent = [memory.lend(SIZE), memory.lend(SIZE)]
    lent.clear()
    assert memory.spare_bytes == 4 * UNIT
    assert len(memory.lend(UNIT)) == UNIT
    assert memory.spare_bytes == 5 * UNIT


def test_what_is_not_aligned_or_not_ours_is_told() -> None:
    lent = WarmMemory(limit_bytes=0).lend(SIZE)
    assert not is_aligned(lent[1:])
    assert is_aligned(lent[UNIT:])
    assert not is_aligned(memoryview(os.urandom(SIZE)))
