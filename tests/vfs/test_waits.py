"""How long readers wait: each wait is in one histogram, that of the slowest tier; who need not wait is in none."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from lazyfs.cache.disk import DiskTier
from lazyfs.core.errors import UnreachableError
from lazyfs.core.stats import Stats
from lazyfs.core.types import Range
from lazyfs.vfs.fetcher import FAILED, slowest
from tests.vfs.test_reader import Bench, pattern, small


def waits(room: Bench) -> dict[str, int]:
    return {tier: histogram.count for tier, histogram in room.stats.histograms("read.wait.").items()}


@pytest.mark.autojump
async def test_a_wait_is_as_long_as_the_reader_waited_and_a_hit_is_none() -> None:
    async with small() as room:
        file, held = room.open(64), room.store.hold("get")

        async def release() -> None:
            await trio.sleep(3)
            held.set()

        room.nursery.start_soon(release)
        assert await room.reader.read(file, Range(3, 5)) == pattern(3, 5)
        assert waits(room) == {"s3": 1}
        told = room.stats.histograms("read.wait.")["s3"].told()
        assert told["sum_s"] == pytest.approx(3, abs=0.1)
        assert 3 <= told["p50_s"] == told["p99_s"] < 3.5
        for _ in range(5):
            assert await room.reader.read(file, Range(3, 5)) == pattern(3, 5)
        assert waits(room) == {"s3": 1}


@pytest.mark.autojump
async def test_while_several_wait_time_passes_once() -> None:
    async with small() as room:
        file, held = room.open(64), room.store.hold("get")

        async def read(after_s: float, start: int) -> None:
            await trio.sleep(after_s)
            await room.reader.read(file, Range(start, start + 4))

        async with trio.open_nursery() as readers:
            readers.start_soon(read, 0, 0)
            readers.start_soon(read, 1, 16)
            readers.start_soon(read, 2, 0)
            await trio.sleep(5)
            held.set()
        await trio.sleep(10)
        await room.reader.read(file, Range(0, 4))
        assert room.stats.get("read.stall_ns") / 1e9 == pytest.approx(5 + 4 + 3, abs=0.1)
        assert room.stats.get("read.stalled_ns") / 1e9 == pytest.approx(5, abs=0.1)
        assert room.fetcher.throughput.busy_s == pytest.approx(5, abs=0.1)
        assert room.fetcher.throughput.bytes == 16


async def test_what_ends_in_an_error_or_with_its_reader_is_counted_too() -> None:
    async with small() as room:
        file = room.open(64)
        room.store.fail("get", 1, UnreachableError("no route"))
        with pytest.raises(UnreachableError):
            await room.reader.read(file, Range(0, 4))
        assert waits(room) == {FAILED: 1}
        held = room.store.hold("get")
        with trio.move_on_after(0.01):
            await room.reader.read(file, Range(0, 4))
        assert waits(room) == {FAILED: 2}
        assert room.stats.get("read.stalls") == 2
        held.set()
        await room.settle()


async def test_the_disk_is_told_apart(tmp_path: Path) -> None:
    async with DiskTier(directory=tmp_path / "blocks", limit_bytes=2**20, scope="s", stats=Stats()) as disk:
        async with small(disk=disk) as first:
            file = first.open(8)
            await first.reader.read(file, Range(0, 8))
        async with small(disk=disk, store=first.store) as room:
            assert await room.reader.read(file, Range(0, 8)) == pattern(0, 8)
            assert waits(room) == {"disk": 1}


def test_who_waits_for_several_tiers_waits_for_the_slowest() -> None:
    assert slowest({"memory", "disk", "s3"}) == "s3"
    assert slowest({"spool", "disk"}) == "disk"
    assert slowest(set()) == FAILED
