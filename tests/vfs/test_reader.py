"""Reading: exactly the bytes, in exactly the requests that they need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.disk import DiskTier
from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.tiered import TieredCache
from lazyfs.core.concurrency import Concurrency
from lazyfs.core.errors import AccessDeniedError, LazyfsError, StaleError, UnreachableError
from lazyfs.core.readahead import ReadAhead, ReadAheadPolicy
from lazyfs.core.stats import Stats
from lazyfs.core.types import Buffer, ObjectId, Range
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.flight import AbandonedError
from lazyfs.vfs.reader import OpenObject, Reader
from lazyfs.vfs.slots import Slots, Urgency
from tests.vfs.stores import ScriptedStore

KiB, MiB, GiB = 1024, 1024**2, 1024**3
BLOCK, EXTENT, WHOLE = 256 * KiB, 8 * MiB, MiB
"""As the daemon sets them."""
KEY = "data/shard"


def pattern(start: int, stop: int) -> bytes:
    """The bytes [start, stop) of every object here: no block is like another."""
    first, last = start // 8, -(-stop // 8)
    return b"".join(number.to_bytes(8, "big") for number in range(first, last))[start - first * 8 : stop - first * 8]


@dataclass
class Bench:
    """A reader's surroundings."""

    store: ScriptedStore
    memory: MemoryTier
    cache: TieredCache
    slots: Slots
    fetcher: Fetcher
    reader: Reader
    stats: Stats
    nursery: trio.Nursery
    policy: ReadAheadPolicy
    stale: list[ObjectId] = field(default_factory=list)

    def open(self, size: int, key: str = KEY) -> OpenObject:
        """An object of `size` bytes."""
        info = self.store.put_now(key, pattern(0, size))
        return OpenObject(info.oid, size, ReadAhead(self.policy))

    async def settle(self) -> None:
        """Wait for read-ahead."""
        while self.fetcher.in_flight:
            await trio.testing.wait_all_tasks_blocked()

    def idle(self) -> None:
        assert self.memory.reserved_bytes == self.fetcher.in_flight == self.slots.taken == 0


@asynccontextmanager
async def bench(
    *,
    store: ScriptedStore | None = None,
    budget: int = 256 * MiB,
    block: int = BLOCK,
    extent: int = EXTENT,
    whole: int = WHOLE,
    slots: int = 32,
    disk: DiskTier | None = None,
    policy: ReadAheadPolicy | None = None,
) -> AsyncIterator[Bench]:
    stats, memory, stale = Stats(), MemoryTier(budget_bytes=budget), list[ObjectId]()
    store, cache = store or ScriptedStore(), TieredCache(memory=memory, disk=disk)
    tickets = Slots(Concurrency.fixed(slots))
    async with trio.open_nursery() as nursery:
        fetcher = Fetcher(
            store=store,
            cache=cache,
            nursery=nursery,
            slots=tickets,
            block_size=block,
            extent_size=extent,
            on_stale=stale.append,
            stats=stats,
        )
        reader = Reader(fetcher=fetcher, whole_object_bytes=whole, stats=stats)
        room = Bench(store, memory, cache, tickets, fetcher, reader, stats, nursery, policy or ReadAheadPolicy(), stale)
        yield room
    if disk is not None:
        await disk.written()  # what waits to be written is reserved too
    room.idle()


NONE = ReadAheadPolicy(first_window=0, max_window=0, bridge=0, max_cursors=1)


def small(**knobs: Any) -> AbstractAsyncContextManager[Bench]:
    """Sizes so small that a few dozen bytes reach every path."""
    return bench(**{"block": 8, "extent": 32, "whole": 0, "budget": 4096, "policy": NONE, **knobs})


# -- the bytes ----------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.integers(0, 220), st.integers(0, 90)), max_size=12),
    st.integers(8, 400),
    st.sampled_from([0, 64, 300]),
)
def test_whatever_is_read_is_what_the_object_holds(
    size: int, reads: list[tuple[int, int]], budget: int, whole: int
) -> None:
    async def main() -> None:
        policy = ReadAheadPolicy(first_window=16, max_window=64, bridge=8)
        async with small(policy=policy, budget=budget, whole=whole) as room:
            file = room.open(size)

            async def read(start: int, length: int) -> None:
                found = bytes(await room.reader.read(file, Range(start, start + length)))
                assert found == pattern(0, size)[start : start + length]

            for start, length in reads:
                await read(start, length)
            async with trio.open_nursery() as readers:
                for start, length in reads:
                    readers.start_soon(read, start, length)
            await room.settle()
            assert room.memory.used_bytes <= max(budget, whole)

    trio.run(main)


# -- the requests -------------------------------------------------------------------------------------------------


class TenGigabytes(ScriptedStore):
    """Says that its object is large: the range is cut out of nothing."""

    async def get_range(self, oid: ObjectId, span: Range) -> Buffer:
        await self._begin("get", oid.key, span)
        return bytes(span.size)


@pytest.mark.parametrize("at", [0, 4 * KiB, BLOCK - 4 * KiB, 5 * GiB + 4 * KiB, 10 * 10**9 - 4 * KiB])
async def test_a_random_read_of_ten_gigabytes_costs_one_get_of_one_block(at: int) -> None:
    async with bench(store=TenGigabytes()) as room:
        file = OpenObject(ObjectId(KEY, "e"), 10 * 10**9, ReadAhead(room.policy))
        assert len(await room.reader.read(file, Range(at, at + 4 * KiB))) == 4 * KiB
        await room.settle()
        block = at // BLOCK
        assert room.store.spans() == [(block * BLOCK, min((block + 1) * BLOCK, file.size))]


async def test_a_read_across_a_border_is_one_get_of_two_blocks() -> None:
    async with bench(store=TenGigabytes()) as room:
        file = OpenObject(ObjectId(KEY, "e"), 10 * GiB, ReadAhead(room.policy))
        await room.reader.read(file, Range(BLOCK - 1, BLOCK + 1))
        assert room.store.spans() == [(0, 2 * BLOCK)]


@pytest.mark.parametrize("size", [1, 110_000, BLOCK, WHOLE])
async def test_a_small_object_is_one_get_wherever_it_is_touched_first(size: int) -> None:
    async with bench() as room:
        file = room.open(size)
        assert await room.reader.read(file, Range(size - 1, size)) == pattern(size - 1, size)
        assert await room.reader.read(file, Range(0, size)) == pattern(0, size)
        assert room.store.spans() == [(0, size)]


async def test_the_kernels_parallel_requests_of_a_small_object_are_one_get() -> None:
    async with bench() as room:
        file = room.open(WHOLE)
        async with trio.open_nursery() as kernel:
            for at in range(0, WHOLE, 128 * KiB):
                kernel.start_soon(room.reader.read, file, Range(at, at + 128 * KiB))
        await room.settle()
        assert room.store.spans() == [(0, WHOLE)]


@pytest.mark.parametrize("request_size", [4 * KiB, 100_000, 128 * KiB, MiB])
async def test_a_sequential_read_fetches_nothing_twice_and_nothing_beyond(request_size: int) -> None:
    size = 24 * MiB + 12_345
    async with bench() as room:
        file = room.open(size)
        content = room.store.body(KEY)
        for at in range(0, size, request_size):
            assert await room.reader.read(file, Range(at, at + request_size)) == content[at : at + request_size]
        await room.settle()
        covered = sorted(room.store.spans())
        assert covered[0][0] == 0
        assert covered[-1][1] == size
        assert all(left[1] == right[0] for left, right in pairwise(covered))
        assert room.store.fetched == size
        assert len(covered) <= 12  # large requests, although the program's are small
        assert max(stop - start for start, stop in covered) <= EXTENT


async def test_the_read_itself_does_not_wait_for_what_is_fetched_ahead() -> None:
    """Read-ahead may begin within the last block of the read: that block comes alone."""
    async with small(policy=ReadAheadPolicy(first_window=16, max_window=64, bridge=8)) as room:
        file = room.open(200)
        await room.reader.read(file, Range(0, 6))
        await room.reader.read(file, Range(6, 12))  # block 1 is in demand, and the range ahead starts inside it
        await room.settle()
        assert sorted(room.store.spans()) == [(0, 8), (8, 16), (16, 40)]


async def test_for_a_backward_reader_extents_begin_at_the_near_end() -> None:
    async with small(policy=ReadAheadPolicy(first_window=60, max_window=100, step=60, bridge=8)) as room:
        file = room.open(400)
        for start in (300, 292, 284):  # block 35 is in demand, and the range ahead ends inside it
            await room.reader.read(file, Range(start, start + 8))
        await room.settle()
        assert set(room.store.spans()[-3:]) == {(280, 288), (248, 280), (216, 248)}  # cut from the near end
        file.readahead = ReadAhead(NONE)
        assert await room.reader.read(file, Range(240, 308)) == pattern(240, 308)


async def test_the_end_of_the_file_and_beyond() -> None:
    async with small() as room:
        file = room.open(20)
        assert await room.reader.read(file, Range(16, 100)) == pattern(16, 20)
        assert await room.reader.read(file, Range(20, 30)) == b""
        assert await room.reader.read(file, Range(1000, 1001)) == b""
        empty = room.open(0, "empty")
        assert await room.reader.read(empty, Range(0, 10)) == b""
        assert room.store.spans() == [(16, 20)]


async def test_only_what_is_missing_is_fetched_in_runs_of_neighbours() -> None:
    async with small() as room:
        file = room.open(200)
        await room.reader.read(file, Range(16, 24))
        await room.reader.read(file, Range(0, 80))
        assert sorted(room.store.spans()) == [(0, 16), (16, 24), (24, 56), (56, 80)]  # no GET over the extent's size


async def test_a_read_that_is_resident_does_not_yield() -> None:
    async with small() as room:
        file = room.open(64)
        await room.reader.read(file, Range(0, 8))
        with trio.testing.assert_no_checkpoints():
            assert await room.reader.read(file, Range(2, 5)) == pattern(2, 5)
        assert room.stats.get("read.bytes.memory") == 3


async def test_each_byte_that_a_reader_gets_is_counted_once_with_its_tier() -> None:
    async with small() as room:
        file, held = room.open(200), room.store.hold("get")
        room.nursery.start_soon(room.reader.read, file, Range(18, 21))
        await trio.testing.wait_all_tasks_blocked()
        assert room.stats.get("read.waiting") == room.stats.get("read.stalls") == 1
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (room.stats.get("read.bytes.s3"), room.stats.get("read.bytes.memory")) == (3, 0)
        await room.reader.read(file, Range(12, 30))  # block 2 is there, 1 and 3 are not
        assert (room.stats.get("read.bytes.s3"), room.stats.get("read.bytes.memory")) == (3 + 4 + 6, 8)
        await room.reader.read(file, Range(190, 300))
        assert (room.stats.get("read.bytes.s3"), room.stats.get("read.bytes.memory")) == (13 + 10, 8)
        assert room.stats.get("read.waiting") == 0
        assert room.stats.get("read.stalls") == 3


# -- flights ------------------------------------------------------------------------------------------------------


async def test_many_readers_of_one_block_are_one_get() -> None:
    async with small() as room:
        file, held = room.open(64), room.store.hold("get")
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await room.reader.read(file, Range(3, 5))))

        for _ in range(20):
            room.nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert room.fetcher.in_flight == 1
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert found == [pattern(3, 5)] * 20
        assert room.store.spans() == [(0, 8)]


async def test_a_reader_that_leaves_does_not_take_the_flight_with_it() -> None:
    async with small() as room:
        file, held, scope = room.open(64), room.store.hold("get"), trio.CancelScope()
        found: list[bytes] = []

        async def read(within: trio.CancelScope) -> None:
            with within:
                found.append(bytes(await room.reader.read(file, Range(0, 4))))

        room.nursery.start_soon(read, scope)
        await trio.testing.wait_all_tasks_blocked()
        room.nursery.start_soon(read, trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert found == [pattern(0, 4)]
        assert room.store.calls["get"] == 1


async def test_an_error_reaches_every_reader_and_the_next_one_asks_again() -> None:
    async with small() as room:
        file, held = room.open(64), room.store.hold("get")
        room.store.fail("get", 1, UnreachableError("no route"))
        heard: list[str] = []

        async def read() -> None:
            try:
                await room.reader.read(file, Range(0, 4))
            except UnreachableError as error:
                heard.append(str(error))

        for _ in range(3):
            room.nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert heard == ["no route"] * 3
        assert await room.reader.read(file, Range(0, 4)) == pattern(0, 4)
        room.idle()


async def test_when_the_mount_ends_nobody_waits_for_ever() -> None:
    """Neither whose bytes are on their way, nor who waits for memory."""
    heard: list[type[LazyfsError]] = []
    async with trio.open_nursery() as readers, small(budget=64) as room:
        room.store.hold("get")
        file = room.open(200)

        async def read(start: int) -> None:
            try:
                await room.reader.read(file, Range(start, start + 32))
            except AbandonedError as error:
                heard.append(type(error))

        for start in (0, 32, 64, 96):
            readers.start_soon(read, start)
        await trio.testing.wait_all_tasks_blocked()
        assert room.memory.reserved_bytes == 64
        room.nursery.cancel_scope.cancel()
    assert heard == [AbandonedError] * 4


async def test_a_full_memory_makes_demand_wait_and_nothing_fail() -> None:
    async with small(budget=40) as room:
        file, held = room.open(400), room.store.hold("get")
        found: list[int] = []

        async def read(start: int) -> None:
            assert await room.reader.read(file, Range(start, start + 16)) == pattern(start, start + 16)
            found.append(start)

        for start in range(0, 160, 16):
            room.nursery.start_soon(read, start)
        await trio.testing.wait_all_tasks_blocked()
        assert room.store.now["get"] == 2
        assert room.memory.used_bytes == 32
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(found) == list(range(0, 160, 16))
        assert room.store.peak["get"] == 2
        assert room.memory.used_bytes <= 40


# -- hints --------------------------------------------------------------------------------------------------------


async def test_hints_for_which_there_is_no_memory_are_dropped() -> None:
    async with small(budget=40) as room:
        file, held = room.open(400), room.store.hold("get")
        room.fetcher.prefetch(file.oid, file.size, range(4))
        room.fetcher.prefetch(file.oid, file.size, range(8, 20))
        await trio.testing.wait_all_tasks_blocked()
        assert room.store.calls["get"] == 1
        assert room.stats.get("readahead.dropped_blocks") >= 4
        assert room.memory.reserved_bytes == 32
        held.set()


async def test_hints_never_hold_up_demand() -> None:
    async with small(slots=2) as room:
        file, held = room.open(400), room.store.hold("get")
        for start in (0, 4, 8):
            room.fetcher.prefetch(file.oid, file.size, range(start, start + 4))
        await trio.testing.wait_all_tasks_blocked()
        assert room.store.now["get"] == 1
        room.nursery.start_soon(room.reader.read, file, Range(200, 204))
        await trio.testing.wait_all_tasks_blocked()
        assert room.store.now["get"] == 2  # the slot that no hint may take
        room.nursery.start_soon(room.reader.read, file, Range(300, 304))
        await trio.testing.wait_all_tasks_blocked()
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert room.store.calls["get"] == 5
        assert (296, 304) in room.store.spans()


async def test_a_hint_becomes_demand_when_a_reader_arrives() -> None:
    async with small(slots=2) as room:
        file, held = room.open(400), room.store.hold("get")
        for start in (0, 4, 8):
            room.fetcher.prefetch(file.oid, file.size, range(start, start + 4))
        await trio.testing.wait_all_tasks_blocked()
        waiting = room.slots._waiting[Urgency.AHEAD].copy()
        last = next(flight for (_, block), flight in room.fetcher._flights.items() if flight.ticket is waiting[-1])
        block = next(block for (_, block), flight in room.fetcher._flights.items() if flight is last)
        room.nursery.start_soon(room.reader.read, file, Range(block * 8, block * 8 + 4))
        await trio.testing.wait_all_tasks_blocked()
        assert room.store.now["get"] == 2  # it overtook the other hint
        assert waiting[-1] not in room.slots._waiting[Urgency.DEMAND]
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert room.store.calls["get"] == 3  # and nothing is asked for twice


async def test_a_hint_for_what_is_here_or_on_its_way_is_nothing() -> None:
    async with small() as room:
        file = room.open(400)
        await room.reader.read(file, Range(0, 8))
        held = room.store.hold("get")
        room.nursery.start_soon(room.reader.read, file, Range(8, 16))
        await trio.testing.wait_all_tasks_blocked()
        room.fetcher.prefetch(file.oid, file.size, range(3))
        await trio.testing.wait_all_tasks_blocked()
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(room.store.spans()) == [(0, 8), (8, 16), (16, 24)]


async def test_a_hint_that_fails_is_nobodys_error() -> None:
    async with small() as room:
        file = room.open(400)
        room.store.fail("get", 1, UnreachableError("no route"))
        room.fetcher.prefetch(file.oid, file.size, range(3))
        await room.settle()
        room.idle()
        assert await room.reader.read(file, Range(0, 8)) == pattern(0, 8)


# -- versions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["replaced", "deleted"])
async def test_what_is_gone_is_stale_but_what_is_resident_stays(change: str) -> None:
    async with small() as room:
        file = room.open(64)
        await room.reader.read(file, Range(0, 8))
        if change == "replaced":
            room.store.put_now(KEY, bytes(64))
        else:
            room.store.delete_now(KEY)
        with pytest.raises(StaleError, match="replaced or deleted"):
            await room.reader.read(file, Range(4, 12))
        assert room.stale == [file.oid]
        assert await room.reader.read(file, Range(0, 8)) == pattern(0, 8)
        room.idle()


async def test_other_errors_are_told_as_they_are() -> None:
    async with small() as room:
        file = room.open(64)
        room.store.fail("get", 1, AccessDeniedError("no"))
        with pytest.raises(AccessDeniedError, match="no"):
            await room.reader.read(file, Range(0, 8))
        assert room.stale == []


# -- the disk -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def with_disk(path: Path) -> AsyncIterator[Bench]:
    stats = Stats()
    async with (
        DiskTier(directory=path / "blocks", limit_bytes=64 * MiB, scope="s", stats=stats) as disk,
        small(disk=disk) as room,
    ):
        yield room


async def test_a_partial_hit_on_disk_fetches_only_what_is_missing(tmp_path: Path) -> None:
    async with with_disk(tmp_path) as room:
        file = room.open(200)
        await room.reader.read(file, Range(16, 24))
        await room.reader.read(file, Range(40, 52))
    async with with_disk(tmp_path) as room:  # another mount: nothing in memory
        file = room.open(200)
        assert await room.reader.read(file, Range(0, 70)) == pattern(0, 70)
        missing = [(0, 16), (24, 32), (32, 40), (56, 64), (64, 72)]  # within each extent of 32
        assert sorted(room.store.spans()) == missing
        assert await room.reader.read(file, Range(16, 24)) == pattern(16, 24)
        assert len(room.store.spans()) == len(missing)
    async with with_disk(tmp_path) as room:
        file = room.open(200)
        assert await room.reader.read(file, Range(0, 72)) == pattern(0, 72)
        assert room.store.spans() == []
        assert room.memory.used_bytes == 72


async def test_the_blocks_of_a_version_are_never_given_for_another(tmp_path: Path) -> None:
    async with with_disk(tmp_path) as room:
        await room.reader.read(room.open(64), Range(0, 64))
    async with with_disk(tmp_path) as room:
        new = OpenObject(room.store.put_now(KEY, bytes(64)).oid, 64, ReadAhead(NONE))
        assert await room.reader.read(new, Range(0, 64)) == bytes(64)
