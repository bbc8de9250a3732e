"""The shared tier over an engine that does what it is told: a bounded wait, a miss at worst, never a wrong byte."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache import shared
from lazyfs.cache.disk import DiskTier
from lazyfs.cache.engine import Name, Value
from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.shared import DRAIN_S, FAILURES, REST_S, WRITE_DEADLINE_S, SharedTier, shared_tier
from lazyfs.cache.sharedvalue import decode, encode, plan_lookup, plan_more
from lazyfs.cache.switch import Switch
from lazyfs.cache.tiered import TieredCache
from lazyfs.core.errors import CacheError, CacheRefusedError
from lazyfs.core.ranges import plan_runs
from lazyfs.core.stats import Stats
from lazyfs.core.types import Buffer, ObjectId

OID = ObjectId("data/ä\n😀", "e1")
BLOCK = 100
SIZE = 30 * BLOCK + 7
warns = pytest.mark.expect_warnings


class FakeEngine:
    """Values in a dict. `before` is called first in each call: what it raises or waits for, the call does."""

    where = "fake://here"
    gets = 2
    deadline_s = 0.2

    def __init__(self, run_blocks: int = 1) -> None:
        self.run_blocks = run_blocks
        self.values: dict[Name, bytes] = {}
        self.calls: list[tuple[str, list[Name]]] = []
        self.before: Callable[[str], object] = lambda verb: None
        self.hold: trio.Event | None = None
        self.closed = False

    async def _begin(self, verb: str, names: Sequence[Name]) -> None:
        self.calls.append((verb, list(names)))
        await trio.lowlevel.checkpoint()
        self.before(verb)
        if self.hold is not None:
            await self.hold.wait()

    async def get_many(self, names: Sequence[Name], *, limit_bytes: int) -> Sequence[Buffer | None]:
        await self._begin("get", names)
        assert all(len(self.values.get(name, b"")) <= limit_bytes for name in names)
        return [self.values.get(name) for name in names]

    async def put_many(self, values: Sequence[Value]) -> None:
        await self._begin("put", [value.name for value in values])
        self.values |= {value.name: b"".join(value.pieces) for value in values}

    async def delete_many(self, names: Sequence[Name]) -> None:
        await self._begin("delete", names)
        for name in names:
            self.values.pop(name, None)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True


class Room:
    def __init__(self, run_blocks: int = 1) -> None:
        self.engine = FakeEngine(run_blocks)
        self.stats = Stats()

    @contextlib.asynccontextmanager
    async def tier(self, *, scope: str = "s", pending: int = 10**6) -> AsyncIterator[SharedTier]:
        async with shared_tier(
            self.engine, scope=scope, block_size=BLOCK, max_pending_bytes=pending, stats=self.stats
        ) as tier:
            tier._clock = trio.current_time
            yield tier

    def count(self, name: str) -> int:
        return self.stats.get(f"cache.shared.{name}")


@pytest.fixture(params=[1, 4])
def room(request: pytest.FixtureRequest) -> Room:
    return Room(request.param)


def block(number: int) -> bytes:
    return bytes([number % 251]) * min(BLOCK, SIZE - number * BLOCK)


def blocks(numbers: Sequence[int]) -> dict[int, Buffer]:
    return {number: block(number) for number in numbers}


async def put(tier: SharedTier, numbers: Sequence[int], oid: ObjectId = OID) -> None:
    """Write and wait until that is over."""
    done = trio.Event()
    tier.put_soon(oid, blocks(numbers), done.set)
    await done.wait()


async def got(tier: SharedTier, numbers: Sequence[int], oid: ObjectId = OID) -> set[int]:
    """Which of these blocks the tier has; they must be right."""
    found: set[int] = set()
    for loaded in await tier.get_many(oid, SIZE, numbers):
        assert loaded.whole == b"".join(loaded.blocks.values())
        assert not found & set(loaded.blocks)
        found |= set(loaded.blocks)
        for number, data in loaded.blocks.items():
            assert data == block(number)
    assert found <= set(numbers)
    return found


def told(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


# -- what it is for -----------------------------------------------------------------------------------------------


async def test_what_one_put_another_gets(room: Room) -> None:
    async with room.tier() as one, room.tier() as other:
        await put(one, range(31))
        assert await got(other, range(31)) == set(range(31))
        assert await got(other, [3, 5, 6, 30]) == {3, 5, 6, 30}
        assert room.count("hit_blocks") == room.count("put_blocks") + 4 == 35
        assert room.count("put_bytes") == SIZE
        assert room.count("hit_bytes") == SIZE + 3 * BLOCK + 7
    assert room.engine.closed


async def test_blocks_of_one_extent_are_one_call(room: Room) -> None:
    async with room.tier() as tier:
        await put(tier, range(16))
        await got(tier, range(16))
        assert [verb for verb, _ in room.engine.calls] == ["put", "get"]


async def test_a_block_is_of_one_version_of_one_object_in_one_scope(room: Room) -> None:
    async with room.tier() as tier, room.tier(scope="other") as other:
        await put(tier, [1])
        assert await got(tier, [1], ObjectId(OID.key, "e2")) == set()
        assert await got(tier, [1], ObjectId("other", OID.etag)) == set()
        assert await got(other, [1]) == set()
        assert await got(tier, [0, 1, 2]) == ({1} if room.engine.run_blocks == 1 else set())
        assert await got(tier, [1, 2]) == {1}


async def test_extents_that_are_cut_elsewhere_are_found() -> None:
    room = Room(4)
    async with room.tier() as tier:
        for extent in ([0], [1, 2, 3], [4, 5], range(6, 16)):  # as a reader whose read-ahead grows has it
            await put(tier, extent)
        assert await got(tier, range(16)) == set(range(16))
        gets = [names for verb, names in room.engine.calls if verb == "get"]
        assert [len(names) for names in gets] == [4, 5]  # the runs; then what follows the short ones


async def test_a_miss_asks_once_for_each_run() -> None:
    room = Room(4)
    async with room.tier() as tier:
        assert await got(tier, range(16)) == set()
        assert [len(names) for _, names in room.engine.calls] == [4]
        assert room.count("miss_blocks") == 16


async def test_a_part_of_a_value_does_not_keep_the_rest_alive() -> None:
    room = Room(4)
    async with room.tier() as tier:
        await put(tier, range(4))
        (whole,) = await tier.get_many(OID, SIZE, range(4))
        assert len(whole.whole.obj) > 4 * BLOCK  # the value as it came
        part, last = await tier.get_many(OID, SIZE, [0, 1, 3])
        assert (bytes(part.whole.obj), bytes(last.whole.obj)) == (block(0) + block(1), block(3))


async def test_what_comes_goes_to_memory_and_disk_and_not_back(tmp_path: Path) -> None:
    room = Room(4)
    async with (
        room.tier() as tier,
        DiskTier(directory=tmp_path / "b", limit_bytes=10**7, scope="s", stats=room.stats) as disk,
    ):
        await put(tier, range(8))
        memory = MemoryTier(budget_bytes=10_000)
        cache = TieredCache(memory=memory, disk=disk, shared=tier)
        await memory.reserve(600)
        assert list(await cache.load_shared(OID, SIZE, [2, 3, 4, 5, 6, 7], to_memory=True)) == [2, 3, 4, 5, 6, 7]
        memory.release(600)
        await disk._idle.wait()
        assert [bytes(cache.resident(OID, number) or b"") for number in range(2, 8)] == [block(n) for n in range(2, 8)]
        assert cache.run(OID, range(4, 8)) == b"".join(blocks(range(4, 8)).values())
        assert set((await disk.get_many(OID, range(8))).blocks) == set(range(2, 8))
        assert memory.reserved_bytes == 0
        assert [verb for verb, _ in room.engine.calls] == ["put", "get"]


# -- it takes a bounded time, and is off while there is trouble -----------------------------------------------------


@warns
@pytest.mark.autojump
async def test_a_dead_engine_costs_three_waits_and_one_warning(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lazyfs")
    async with room.tier() as tier:
        await put(tier, range(4))
        room.engine.hold = trio.Event()
        for _ in range(FAILURES):
            before = trio.current_time()
            assert await got(tier, range(4)) == set()
            assert trio.current_time() - before == pytest.approx(room.engine.deadline_s)
        asked = len(room.engine.calls)
        assert await got(tier, range(4)) == set()
        assert (len(room.engine.calls), room.count("timeouts"), room.count("errors")) == (asked, 3, 3)
        assert tier.status() == {
            "where": "fake://here",
            "state": "off",
            "last_error": "no answer within 0.2 s",
            "pending": 0,
        }
        assert not tier.accepts(1)
        await trio.sleep(REST_S)
        assert await got(tier, range(4)) == set()  # one more wait, and off again
        assert tier.status()["state"] == "off"
        await trio.sleep(REST_S)
        assert len(told(caplog)) == 1
        room.engine.hold = None
        assert await got(tier, range(4)) == set(range(4))
        assert tier.status()["state"] == "on"
        assert len(told(caplog)) == 1
        assert told(caplog, logging.INFO) == ["shared cache fake://here: back again"]


@warns
async def test_a_refused_connection_is_a_miss(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(verb: str) -> None:
        raise CacheError("connection refused")

    async with room.tier() as tier:
        room.engine.before = refuse
        for _ in range(5):
            assert await got(tier, range(4)) == set()
        assert len(room.engine.calls) == FAILURES
        assert len(told(caplog)) == 1
        assert "connection refused" in told(caplog)[0]


async def test_a_failure_now_and_then_is_no_trouble(room: Room) -> None:
    fails = [True, True, False] * 4

    def sometimes(verb: str) -> None:
        if verb == "get" and fails.pop():
            raise CacheError("a packet was lost")

    async with room.tier() as tier:
        await put(tier, [0])
        room.engine.before = sometimes
        found = [await got(tier, [0]) for _ in range(12)]
        assert found.count({0}) == 4
        assert tier.status()["state"] == "on"


@warns
@pytest.mark.parametrize("verb", ["get", "put", "delete"])
async def test_whatever_an_engine_raises_the_tier_does_not(room: Room, verb: str) -> None:
    def explode(called: str) -> None:
        if called == verb:
            raise ValueError("redis://user:secret@host")

    async with room.tier() as tier:
        room.engine.before = explode
        for _ in range(5):
            await put(tier, [0])
            await got(tier, [0])
            for name in room.engine.values:
                room.engine.values[name] = b"junk"
        assert "secret" not in str(tier.status())


@pytest.mark.autojump
async def test_waiting_for_a_turn_is_no_failure(room: Room) -> None:
    async with room.tier() as tier, trio.open_nursery() as nursery:
        await put(tier, [0])
        for _ in range(room.engine.gets):
            await tier._gets.acquire_on_behalf_of(object())
        nursery.start_soon(tier.get_many, OID, SIZE, [0])
        await trio.sleep(room.engine.deadline_s + 0.01)
        assert (room.count("busy_blocks"), room.count("errors")) == (1, 0)
        assert tier.status()["state"] == "on"


@pytest.mark.autojump
async def test_what_is_not_urgent_leaves_turns_to_readers(room: Room) -> None:
    room.engine.deadline_s = 50.0
    async with room.tier() as tier, trio.open_nursery() as nursery:
        await put(tier, range(4))
        room.engine.hold = trio.Event()
        for _ in range(10):
            nursery.start_soon(lambda: tier.get_many(OID, SIZE, range(4), urgent=False))
        await trio.sleep(1)
        assert tier._gets.borrowed_tokens == room.engine.gets // 2
        room.engine.hold.set()
    assert room.count("hit_blocks") == 40
    assert room.count("busy_blocks") == 0


async def test_a_preload_goes_past_memory(tmp_path: Path) -> None:
    room = Room(4)
    async with (
        room.tier() as tier,
        DiskTier(directory=tmp_path / "b", limit_bytes=10**7, scope="s", stats=room.stats) as disk,
    ):
        await put(tier, range(8))
        cache = TieredCache(memory=MemoryTier(budget_bytes=10_000), disk=disk, shared=tier)
        assert set(await cache.load_shared(OID, SIZE, range(8), to_memory=False)) == set(range(8))
        await disk.written()
        assert cache.memory.used_bytes == 0
        assert set((await disk.get_many(OID, range(8))).blocks) == set(range(8))


async def test_a_cancelled_reader_takes_nothing_along(room: Room) -> None:
    async with room.tier() as tier:
        await put(tier, [0])
        room.engine.hold = trio.Event()
        for _ in range(5):
            with trio.CancelScope() as scope:
                scope.cancel()
                await tier.get_many(OID, SIZE, [0])
        room.engine.hold = None
        assert await got(tier, [0]) == {0}
        assert room.count("errors") == 0


# -- writing ------------------------------------------------------------------------------------------------------


async def test_what_waits_is_reserved_and_what_exceeds_the_bound_is_not_written() -> None:
    room = Room()
    async with room.tier(pending=200) as tier:
        memory = MemoryTier(budget_bytes=1000)
        cache = TieredCache(memory=memory, disk=None, shared=tier)
        room.engine.hold = trio.Event()
        for number in range(3):
            cache.admit(OID, blocks([number]), BLOCK, to_disk=True)
        assert (memory.reserved_bytes, tier.pending_bytes, room.count("dropped_blocks")) == (200, 200, 1)
        room.engine.hold.set()
        while tier.pending_bytes:
            await trio.lowlevel.checkpoint()
        assert memory.reserved_bytes == 0
        assert await got(tier, [0, 1, 2]) == {0, 1}
        cache.admit(OID, blocks([3]), BLOCK, to_disk=False)  # it came from the SSD
        assert tier.pending_bytes == 0


async def test_no_more_than_a_number_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MAX_PENDING", 5)
    room = Room()
    async with room.tier() as tier:
        taken = 0
        while tier.accepts(1):
            tier.put_soon(OID, blocks([taken]), lambda: None)
            taken += 1
        assert taken == 5


@warns
async def test_an_engine_that_takes_nothing_is_still_read(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    def full(verb: str) -> None:
        if verb == "put":
            raise CacheRefusedError("OOM command not allowed")

    async with room.tier() as tier:
        await put(tier, [0])
        room.engine.before = full
        for _ in range(3):
            await put(tier, [1])
        assert tier.status()["state"] == "reading"
        assert not tier.accepts(1)
        assert await got(tier, [0, 1]) == {0}
        assert (room.count("dropped_blocks"), len(told(caplog))) == (3, 1)
        assert "nothing is added" in told(caplog)[0]


@warns
@pytest.mark.autojump
async def test_leaving_waits_for_what_is_pending_but_not_for_ever(room: Room) -> None:
    async with room.tier() as tier:
        tier.put_soon(OID, blocks([0]), lambda: None)
    assert room.count("put_blocks") == 1
    begun = trio.current_time()
    done: list[int] = []
    async with room.tier() as tier:
        room.engine.hold = trio.Event()
        for number in range(5):
            tier.put_soon(OID, blocks([number]), lambda number=number: done.append(number))
    assert trio.current_time() - begun <= max(DRAIN_S, WRITE_DEADLINE_S) + 0.1
    assert sorted(done) == list(range(5))
    assert tier.pending_bytes == 0


# -- values that are not what they should be ------------------------------------------------------------------------


@warns
async def test_a_damaged_value_is_a_miss_one_warning_and_deleted(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    async with room.tier() as tier:
        await put(tier, range(4))
        originals = dict(room.engine.values)
        for damage in (lambda v: v[:-1], lambda v: v + b"x", lambda v: b"", lambda v: b"lsv1", lambda v: bytes(len(v))):
            room.engine.values = {name: damage(value) for name, value in originals.items()}
            assert await got(tier, range(4)) == set()
            while room.engine.values:
                await trio.lowlevel.checkpoint()
        one, other = ObjectId("x", "1"), ObjectId("y", "1")
        await put(tier, [0], one)
        (value,) = room.engine.values.values()
        room.engine.values = {tier_name(tier, other): value}  # a whole value in the wrong place
        assert await got(tier, [0], other) == set()
        assert len(told(caplog)) == 1


@warns
async def test_a_value_whose_blocks_have_another_size_is_damaged() -> None:
    room = Room()
    async with room.tier() as tier:
        await put(tier, [0])
        assert await tier.get_many(OID, BLOCK - 1, [0]) == []
        assert room.count("damaged_blocks") == 1


def tier_name(tier: SharedTier, oid: ObjectId) -> Name:
    return shared._Version(tier._scope, oid).name(0)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4), st.data())
def test_a_flipped_bit_anywhere_in_a_value_is_found(pieces: list[bytes], data: st.DataObject) -> None:
    value = b"".join(encode(b"me", pieces))
    held = decode(b"me", 7, value)
    assert held is not None
    assert [bytes(part) for part in held.blocks.values()] == pieces
    assert list(held.blocks) == list(range(7, 7 + len(pieces)))
    assert held.whole == b"".join(pieces)
    assert decode(b"mf", 7, value) is None
    at = data.draw(st.integers(0, len(value) - 1))
    flipped = bytearray(value)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    assert decode(b"me", 7, bytes(flipped)) is None
    assert decode(b"me", 7, value[:at]) is None


@given(st.sampled_from([1, 4]), st.integers(0, 40), st.integers(1, 40), st.data())
def test_what_lies_in_one_stored_extent_is_found(run_blocks: int, start: int, length: int, data: st.DataObject) -> None:
    extent = range(start, start + length)
    stored = {run.start: run for run in plan_runs(extent, run_blocks)}
    first = data.draw(st.integers(extent.start, extent.stop - 1))
    wanted = range(first, data.draw(st.integers(first + 1, extent.stop)))
    asked = plan_lookup(wanted, run_blocks)
    assert len(asked) == len(set(asked)) <= len(wanted) + 1
    came = {begin for begin in asked if begin in stored}
    found = {number for begin in came for number in stored[begin]}
    missing = [number for number in wanted if number not in found]
    found |= {begin for begin in plan_more(missing, came, asked, run_blocks) if begin in stored}
    assert set(wanted) <= found


def test_the_switch() -> None:
    switch = Switch(failures=3, rest_s=10)
    assert [switch.failed("x", 0), switch.failed("x", 0), switch.is_on(0)] == [False, False, True]
    assert not switch.worked()
    assert [switch.failed(str(n), 5) for n in range(4)] == [False, False, True, False]
    assert (switch.is_on(14.9), switch.is_on(15), switch.last_error) == (False, True, "3")
    assert switch.failed("again", 15) is False
    assert not switch.is_on(24)
    assert [switch.worked(), switch.worked(), switch.is_on(16)] == [True, False, True]
