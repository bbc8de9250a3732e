"""The memory tier: one budget, whatever is asked of it."""

from __future__ import annotations

from collections import deque

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.tiered import TieredCache
from lazyfs.core.types import ObjectId

OID = ObjectId("k", "1")
BUDGET = 100


def slab(size: int, count: int) -> tuple[bytes, list[memoryview]]:
    """A buffer of `size` bytes in `count` views."""
    buffer = bytes(size)
    step = -(-size // count)
    return buffer, [memoryview(buffer)[at : at + step] for at in range(0, size, step)]


class MemoryMachine(RuleBasedStateMachine):
    """Against the rule itself: what is reserved and what is held is counted here a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = MemoryTier(budget_bytes=BUDGET)
        self.reserved: list[int] = []

    @rule(size=st.integers(1, 130))
    def try_reserve(self, size: int) -> None:
        fits = sum(self.reserved) + size <= BUDGET or not self.reserved
        assert self.tier.try_reserve(size) == fits
        if fits:
            self.reserved.append(size)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), first=st.integers(0, 12), count=st.integers(1, 4))
    def arrive(self, data: st.DataObject, first: int, count: int) -> None:
        """A fetch gets its bytes, in one buffer, keeps them, and gives its reservation back."""
        size = self.reserved.pop(data.draw(st.integers(0, len(self.reserved) - 1)))
        _, views = slab(size, count)
        blocks = {first + index: view for index, view in enumerate(views)}
        self.tier.put(OID, dict(blocks), size)
        self.within_budget(counted_twice=size)
        self.tier.release(size)
        if size <= BUDGET - sum(self.reserved):
            for number, view in blocks.items():  # what has just come is the last to go
                assert self.tier.get(OID, number) is view

    @precondition(lambda self: self.reserved)
    @rule()
    def give_up(self) -> None:
        self.tier.release(self.reserved.pop())

    @rule(number=st.integers(0, 15))
    def forget(self, number: int) -> None:
        self.tier.forget(OID, number)
        assert self.tier.get(OID, number) is None

    @rule(number=st.integers(0, 15))
    def get(self, number: int) -> None:
        self.tier.get(OID, number)

    @invariant()
    def within_budget(self, counted_twice: int = 0) -> None:
        reserved = sum(self.reserved)
        assert self.tier.reserved_bytes == reserved + counted_twice
        views = [view for (view, _slab), _size in self.tier._blocks._items.values()]
        held = sum({id(view.obj): len(view.obj) for view in views}.values())
        assert self.tier.used_bytes == held + reserved + counted_twice  # what is counted is what is held
        assert held + reserved <= max(BUDGET, reserved)


TestMemory = MemoryMachine.TestCase


def test_the_least_recently_used_goes_first() -> None:
    tier = MemoryTier(budget_bytes=30)
    for number in range(3):
        tier.put(OID, {number: bytes(10)}, 10)
    tier.get(OID, 0)
    assert tier.try_reserve(10)
    assert [number for number in range(3) if tier.get(OID, number)] == [0, 2]


def test_a_buffer_counts_until_its_last_block_is_gone() -> None:
    tier = MemoryTier(budget_bytes=100)
    _, (one, two) = slab(60, 2)
    tier.put(OID, {1: one, 2: two}, 60)
    tier.forget(OID, 1)
    assert tier.used_bytes == 60
    tier.put(OID, {2: bytes(5)}, 5)  # the other block comes anew, in another buffer
    assert tier.used_bytes == 5


def test_versions_do_not_see_each_other() -> None:
    tier = MemoryTier(budget_bytes=100)
    tier.put(OID, {1: b"old"}, 3)
    assert tier.get(ObjectId("k", "2"), 1) is None
    assert tier.get(ObjectId("l", "1"), 1) is None
    assert tier.get(OID, 1) == b"old"


def test_an_empty_put_holds_nothing() -> None:
    tier = MemoryTier(budget_bytes=100)
    tier.put(OID, {}, 50)
    assert tier.used_bytes == 0


# -- waiting ------------------------------------------------------------------------------------------------------


class Line:
    """Callers that wait for memory, in the order in which they were granted."""

    def __init__(self, tier: MemoryTier, nursery: trio.Nursery) -> None:
        self.tier, self.nursery = tier, nursery
        self.granted: list[str] = []

    async def join(self, name: str, size: int) -> trio.CancelScope:
        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                await self.tier.reserve(size)
                self.granted.append(name)

        self.nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        return scope


async def test_who_waits_is_served_in_line() -> None:
    tier = MemoryTier(budget_bytes=100)
    assert tier.try_reserve(90)
    async with trio.open_nursery() as nursery:
        line = Line(tier, nursery)
        await line.join("large", 50)
        await line.join("small", 5)  # would fit, but nobody is overtaken
        assert not tier.try_reserve(1)
        assert line.granted == []
        tier.release(40)
        await trio.testing.wait_all_tasks_blocked()
        assert line.granted == ["large"]
        tier.release(50)
        await trio.testing.wait_all_tasks_blocked()
        assert line.granted == ["large", "small"]
    assert tier.reserved_bytes == 55


async def test_who_leaves_the_line_lets_the_next_pass() -> None:
    tier = MemoryTier(budget_bytes=100)
    assert tier.try_reserve(90)
    async with trio.open_nursery() as nursery:
        line = Line(tier, nursery)
        scope = await line.join("large", 50)
        await line.join("small", 5)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert line.granted == ["small"]
    assert tier.reserved_bytes == 95


async def test_who_leaves_from_the_middle_of_the_line_changes_nothing() -> None:
    tier = MemoryTier(budget_bytes=100)
    assert tier.try_reserve(90)
    async with trio.open_nursery() as nursery:
        line = Line(tier, nursery)
        await line.join("one", 50)
        scope = await line.join("two", 50)
        await line.join("three", 50)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert line.granted == []
        tier.release(90)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(line.granted) == ["one", "three"]
    assert tier.reserved_bytes == 100


async def test_a_grant_that_comes_together_with_the_cancellation_is_given_back() -> None:
    tier = MemoryTier(budget_bytes=100)
    assert tier.try_reserve(90)
    async with trio.open_nursery() as nursery:
        line = Line(tier, nursery)
        scope = await line.join("one", 50)
        scope.cancel()
        tier.release(90)  # granted before the cancelled task has run
        await trio.testing.wait_all_tasks_blocked()
    assert tier.reserved_bytes == sum(50 for _ in line.granted)
    assert tier.try_reserve(100 - tier.reserved_bytes)


async def test_more_than_the_budget_is_granted_alone() -> None:
    tier = MemoryTier(budget_bytes=100)
    assert tier.try_reserve(10)
    async with trio.open_nursery() as nursery:
        line = Line(tier, nursery)
        await line.join("huge", 1000)
        await line.join("next", 10)
        tier.release(10)
        await trio.testing.wait_all_tasks_blocked()
        assert line.granted == ["huge"]
        assert tier.get(OID, 0) is None
        tier.release(1000)
        await trio.testing.wait_all_tasks_blocked()
        assert line.granted == ["huge", "next"]


async def test_a_reservation_makes_resident_blocks_give_way() -> None:
    tier = MemoryTier(budget_bytes=100)
    tier.put(OID, {0: bytes(60)}, 60)
    await tier.reserve(50)
    assert tier.get(OID, 0) is None
    assert tier.used_bytes == 50


@pytest.mark.autojump
async def test_many_that_come_and_go_leave_nothing_behind() -> None:
    tier, peak = MemoryTier(budget_bytes=100), 0
    sizes = deque((index * 37) % 60 + 1 for index in range(200))

    async def come_and_go(index: int, size: int) -> None:
        nonlocal peak
        with trio.CancelScope() as scope:
            if index % 7 == 0:
                scope.deadline = trio.current_time() + index % 3 * 4
            await tier.reserve(size)
            try:
                peak = max(peak, tier.used_bytes)
                await trio.sleep(index % 5 / 10)
                tier.put(OID, {index: bytes(size)}, size)
            finally:
                tier.release(size)

    async with trio.open_nursery() as nursery:
        for index, size in enumerate(sizes):
            nursery.start_soon(come_and_go, index, size)
    assert tier.reserved_bytes == 0
    assert tier.used_bytes <= peak <= 100


async def test_tiers_without_a_disk() -> None:
    cache = TieredCache(memory=MemoryTier(budget_bytes=100), disk=None)
    assert (await cache.load(OID, [1, 2])).blocks == {}
    cache.admit(OID, {1: b"x"}, 1, to_disk=True)
    assert cache.resident(OID, 1) == b"x"


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 8), st.data())
def test_a_run_is_the_blocks_joined_or_nothing(first: int, count: int, last_size: int, data: st.DataObject) -> None:
    tier = MemoryTier(budget_bytes=1000)
    body = bytes(range(8 * (count - 1) + last_size))
    whole = memoryview(body)
    blocks = {first + n: whole[8 * n : 8 * n + 8] for n in range(count)}
    tier.put(OID, dict(blocks), len(body), whole)
    lost = data.draw(st.none() | st.sampled_from(sorted(blocks)))
    if lost is not None:
        tier.forget(OID, lost)
    start = data.draw(st.sampled_from(sorted(blocks)))
    stop = data.draw(st.integers(start + 1, first + count))
    run = tier.run(OID, range(start, stop))
    if lost is not None and start <= lost < stop:
        assert run is None
    else:
        assert run is not None
        assert bytes(run) == b"".join(blocks[block] for block in range(start, stop))


def test_blocks_that_came_in_two_buffers_are_no_run() -> None:
    tier = MemoryTier(budget_bytes=1000)
    for block in (1, 2):
        body = memoryview(bytes(8))
        tier.put(OID, {block: body}, 8, body)
    assert tier.run(OID, range(1, 3)) is None
    assert tier.run(OID, range(2, 3)) == bytes(8)
    assert tier.run(OID, range(3, 5)) is None


def test_what_can_wait_gets_a_quarter_of_the_budget_and_less_when_others_hold_some() -> None:
    tier = MemoryTier(budget_bytes=100)
    assert tier.try_reserve_spare(20)
    assert not tier.try_reserve_spare(6)
    assert tier.try_reserve_spare(5)
    tier.release(25)
    assert tier.try_reserve(24)
    assert not tier.try_reserve_spare(2)
    tier.release(24)
