"""Slots: demand first, hints never the last ones, nothing lost."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing

from lazyfs.vfs.slots import Slots, Ticket


class Crowd:
    """Holders that stay until they are told to go."""

    def __init__(self, nursery: trio.Nursery, *, total: int, hints: int) -> None:
        self.slots = Slots(total=total, hints=hints)
        self.inside: list[str] = []
        self.tickets: dict[str, Ticket] = {}
        self._nursery = nursery
        self._leave: dict[str, trio.Event] = {}
        self._scopes: dict[str, trio.CancelScope] = {}

    async def come(self, name: str, *, urgent: bool) -> None:
        self.tickets[name] = Ticket(urgent=urgent)
        self._leave[name], self._scopes[name] = trio.Event(), trio.CancelScope()
        self._nursery.start_soon(self._stay, name)
        await trio.testing.wait_all_tasks_blocked()

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await trio.testing.wait_all_tasks_blocked()

    async def cancel(self, name: str) -> None:
        self._scopes[name].cancel()
        await trio.testing.wait_all_tasks_blocked()

    async def _stay(self, name: str) -> None:
        with self._scopes[name]:
            async with self.slots.hold(self.tickets[name]):
                self.inside.append(name)
                try:
                    await self._leave[name].wait()
                finally:
                    self.inside.remove(name)


async def test_hints_leave_slots_for_demand() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=3, hints=2)
        for name in ("h1", "h2", "h3"):
            await crowd.come(name, urgent=False)
        assert crowd.inside == ["h1", "h2"]
        await crowd.come("d1", urgent=True)
        await crowd.come("d2", urgent=True)
        assert crowd.inside == ["h1", "h2", "d1"]
        await crowd.leave("h1")
        assert crowd.inside == ["h2", "d1", "d2"]  # demand overtakes the hint that waited longer
        await crowd.leave("d1")
        assert crowd.inside == ["h2", "d2", "h3"]
        for name in ("h2", "d2", "h3"):
            await crowd.leave(name)
    assert crowd.slots.taken == 0


async def test_demand_may_take_them_all() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=2, hints=1)
        for name in ("d1", "d2", "d3"):
            await crowd.come(name, urgent=True)
        assert crowd.inside == ["d1", "d2"]
        assert crowd.slots.taken == 2
        nursery.cancel_scope.cancel()
    assert crowd.slots.taken == 0


async def test_a_hint_that_a_reader_waits_for_is_demand() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=2, hints=1)
        for name in ("h1", "h2", "h3"):
            await crowd.come(name, urgent=False)
        assert crowd.inside == ["h1"]
        crowd.slots.promote(crowd.tickets["h3"])
        await trio.testing.wait_all_tasks_blocked()
        assert crowd.inside == ["h1", "h3"]
        crowd.slots.promote(crowd.tickets["h1"])  # has its slot already; still counts as the hint it was
        await crowd.leave("h3")
        assert crowd.inside == ["h1"]
        await crowd.leave("h1")
        assert crowd.inside == ["h2"]
        await crowd.leave("h2")
    assert crowd.slots.taken == 0


async def test_a_ticket_may_be_used_again() -> None:
    slots, ticket = Slots(total=1, hints=1), Ticket(urgent=False)
    for _ in range(3):
        async with slots.hold(ticket):
            assert slots.taken == 1
        slots.promote(ticket)
    assert slots.taken == 0


async def test_who_is_cancelled_while_waiting_takes_nothing_with_it() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=1, hints=1)
        for name in ("d1", "d2", "d3"):
            await crowd.come(name, urgent=True)
        await crowd.cancel("d2")
        await crowd.leave("d1")
        assert crowd.inside == ["d3"]
        await crowd.cancel("d3")
    assert crowd.slots.taken == 0


async def test_a_slot_granted_together_with_the_cancellation_is_given_on() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=1, hints=1)
        for name in ("d1", "d2", "d3"):
            await crowd.come(name, urgent=True)
        crowd._scopes["d2"].cancel()
        crowd._leave["d1"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert crowd.inside == ["d3"]
        await crowd.leave("d3")
    assert crowd.slots.taken == 0


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_the_bounds_hold_and_nobody_is_forgotten(seed: int) -> None:
    random = Random(seed)
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=3, hints=2)
        waiting: set[str] = set()
        for number in range(60):
            name = random.choice(sorted(waiting)) if waiting else ""
            match random.randrange(5):
                case 0 | 1:
                    await crowd.come(f"n{number}", urgent=random.random() < 0.5)
                    waiting.add(f"n{number}")
                case 2 if crowd.inside:
                    gone = random.choice(crowd.inside)
                    await crowd.leave(gone)
                    waiting.discard(gone)
                case 3 if name:
                    await crowd.cancel(name)
                    waiting.discard(name)
                case 4 if name:
                    crowd.slots.promote(crowd.tickets[name])
                    await trio.testing.wait_all_tasks_blocked()
            assert crowd.slots.taken == len(crowd.inside) <= 3
            outside = waiting - set(crowd.inside)
            assert crowd.slots._hints_taken <= 2
            assert not outside or len(crowd.inside) == 3 or (
                crowd.slots._hints_taken == 2 and not any(crowd.tickets[name].urgent for name in outside)
            )  # fmt: skip
        nursery.cancel_scope.cancel()
    assert crowd.slots.taken == 0
