"""The same seed, the same run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lazyfs.cache.disk import DiskTier
from lazyfs.core.stats import Stats
from lazyfs.core.types import ObjectId
from tests.vfs.building import Portal
from tests.vfs.schedules import without_threads

OID = ObjectId("a", "1")


@pytest.fixture(autouse=True)
def _one_schedule() -> Iterator[None]:
    with without_threads():
        yield


def order(seed: int) -> str:
    """In what order three tasks get work done that is for threads."""
    done: list[str] = []

    async def one(name: str) -> None:
        for _ in range(3):
            await trio.to_thread.run_sync(lambda: done.append(name))

    async def all_three() -> None:
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(one, name)

    with Portal() as portal:
        portal.seed = seed
        portal.call(all_three)
    return "".join(done)


def test_a_seed_decides_the_order() -> None:
    orders = [order(seed) for seed in range(20)]
    assert orders == [order(seed) for seed in range(20)]
    assert len(set(orders)) > 10


def test_what_fails_for_a_thread_fails_for_who_asked() -> None:
    with Portal() as portal, pytest.raises(ZeroDivisionError):
        portal.call(lambda: trio.to_thread.run_sync(lambda: 1 // 0))


def test_the_disk_tier_needs_no_threads(tmp_path: Path) -> None:
    """What is pending when it is left is written all the same."""
    before = set(threading.enumerate())

    def tier() -> DiskTier:
        return DiskTier(directory=tmp_path, limit_bytes=2**30, scope="s", stats=Stats())

    async def fill_and_read() -> bytes:
        async with tier() as disk:
            disk.put_soon(OID, {0: b"x" * 8}, lambda: None)
        async with tier() as disk:
            found = await disk.get_many(OID, range(1))
        assert len(set(threading.enumerate()) - before) == 1, "more than the loop's"
        return bytes(found.whole)

    with Portal() as portal:
        assert portal.call(fill_and_read) == b"x" * 8
