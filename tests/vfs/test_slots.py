"""Slots: demand, then read-ahead, then preload; guesses never hold the last ones; their number may change."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing

from lazyfs.core.background import SMALL_BYTES, STEP
from lazyfs.core.concurrency import HIGHEST, START, Concurrency
from lazyfs.vfs.slots import Slots, Ticket, Urgency

DEMAND, AHEAD, PRELOAD = Urgency


class Crowd:
    """Holders that stay until they are told to go."""

    def __init__(self, nursery: trio.Nursery, *, total: int) -> None:
        self.concurrency = Concurrency.fixed(total)
        self.slots = Slots(self.concurrency)
        self.inside: list[str] = []
        self.tickets: dict[str, Ticket] = {}
        self._nursery = nursery
        self._leave: dict[str, trio.Event] = {}
        self._scopes: dict[str, trio.CancelScope] = {}

    async def come(self, name: str, urgency: Urgency = DEMAND, ticket: Ticket | None = None) -> None:
        self.tickets[name] = ticket or Ticket(urgency)
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
            async with self.slots.hold(self.tickets[name], 2 * SMALL_BYTES):
                self.inside.append(name)
                try:
                    await self._leave[name].wait()
                finally:
                    self.inside.remove(name)


async def test_hints_leave_slots_for_demand() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=3)
        for name in ("h1", "h2", "h3"):
            await crowd.come(name, AHEAD)
        assert crowd.inside == ["h1", "h2"]
        await crowd.come("d1")
        await crowd.come("d2")
        assert crowd.inside == ["h1", "h2", "d1"]
        await crowd.leave("h1")
        assert crowd.inside == ["h2", "d1", "d2"]  # demand overtakes the hint that waited longer
        await crowd.leave("d1")
        assert crowd.inside == ["h2", "d2", "h3"]
        for name in ("h2", "d2", "h3"):
            await crowd.leave(name)
    assert crowd.slots.taken == 0


async def test_preload_comes_last_and_leaves_half() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=8)
        for number in range(6):
            await crowd.come(f"p{number}", PRELOAD)
        assert crowd.inside == ["p0", "p1", "p2", "p3"]
        for number in range(4):
            await crowd.come(f"h{number}", AHEAD)
        assert crowd.inside[4:] == ["h0", "h1"]  # preload counts as what nobody waits for, too
        await crowd.leave("p0")
        assert crowd.inside[3:] == ["h0", "h1", "h2"]
        await crowd.come("d0")
        await crowd.come("d1")
        assert crowd.inside[6:] == ["d0", "d1"]
        await crowd.leave("d0")
        assert len(crowd.inside) == 7  # the last two are for demand, whoever waits
        for name in ("p1", "p2", "h0"):
            await crowd.leave(name)
        assert crowd.inside == ["p3", "h1", "h2", "d1", "h3", "p4", "p5"]
        nursery.cancel_scope.cancel()
    assert crowd.slots.taken == 0


async def test_equals_are_served_in_the_order_in_which_they_were_meant() -> None:
    """Tickets are made in the order of need; tasks begin in any."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=2)
        await crowd.come("d0")
        await crowd.come("d1")
        later, sooner = "h1", "h0"
        crowd.tickets[sooner] = Ticket(AHEAD)
        await crowd.come(later, AHEAD)
        await crowd.come(sooner, AHEAD, ticket=crowd.tickets[sooner])
        await crowd.leave("d0")
        assert crowd.inside == ["d1", sooner]
        nursery.cancel_scope.cancel()


async def test_preload_becomes_read_ahead_or_demand_but_never_less_than_it_is() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=4)
        for number in range(4):
            await crowd.come(f"p{number}", PRELOAD)
        assert crowd.inside == ["p0", "p1"]
        crowd.slots.promote(crowd.tickets["p3"], AHEAD)
        await trio.testing.wait_all_tasks_blocked()
        assert crowd.inside == ["p0", "p1", "p3"]
        crowd.slots.promote(crowd.tickets["p2"])
        crowd.slots.promote(crowd.tickets["p2"], AHEAD)
        assert crowd.tickets["p2"].urgency is DEMAND
        await trio.testing.wait_all_tasks_blocked()
        assert crowd.inside == ["p0", "p1", "p3", "p2"]
        nursery.cancel_scope.cancel()


async def test_fewer_slots_interrupt_nobody_and_more_are_given_at_once() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=4)
        for number in range(6):
            await crowd.come(f"d{number}")
        await crowd.come("h", AHEAD)
        crowd.concurrency.limit = 2
        await crowd.leave("d0")
        await crowd.leave("d1")
        assert crowd.inside == ["d2", "d3"]
        await crowd.leave("d2")
        assert crowd.inside == ["d3", "d4"]
        crowd.concurrency.limit = 8
        await crowd.leave("d3")
        assert sorted(crowd.inside) == ["d4", "d5", "h"]
        nursery.cancel_scope.cancel()
    assert crowd.slots.taken == 0


@pytest.mark.parametrize("limit", range(2, 257))
async def test_each_class_has_room_whatever_the_limit(limit: int) -> None:
    slots = Slots(Concurrency.fixed(limit))
    assert limit == slots.share(DEMAND) > slots.share(AHEAD) >= slots.share(PRELOAD) >= 1
    assert slots.share(DEMAND) - slots.share(AHEAD) >= limit // 4


@pytest.mark.autojump
async def test_slots_grow_while_they_help_and_shrink_at_once_when_the_server_refuses() -> None:
    """About ten requests a second on each connection, whatever their number, and always somebody who waits."""
    slots, random = Slots(Concurrency()), Random(1)

    async def ask() -> None:
        while True:
            async with slots.hold(Ticket(DEMAND), 1000):
                await trio.sleep(0.08 + 0.04 * random.random())

    async with trio.open_nursery() as nursery:
        for _ in range(2 * HIGHEST):
            nursery.start_soon(ask)
        await trio.sleep(0.5)
        assert slots.taken == slots.limit == START
        await trio.sleep(30)
        assert slots.taken == slots.limit == HIGHEST
        slots.observe_throttled()
        slots.observe_throttled()
        assert slots.limit == HIGHEST * 8 // 10  # once for all that were refused together
        assert slots.taken == HIGHEST
        await trio.sleep(2)
        assert slots.taken == slots.limit
        nursery.cancel_scope.cancel()


async def test_what_fails_is_no_throughput() -> None:
    concurrency = Concurrency()
    slots = Slots(concurrency)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            async with slots.hold(Ticket(DEMAND), 1000):
                raise ValueError("broken")
    assert concurrency._began_s is None
    assert slots.taken == 0


async def test_demand_may_take_them_all() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=2)
        for name in ("d1", "d2", "d3"):
            await crowd.come(name)
        assert crowd.inside == ["d1", "d2"]
        assert crowd.slots.taken == 2
        nursery.cancel_scope.cancel()
    assert crowd.slots.taken == 0


async def test_a_hint_that_a_reader_waits_for_is_demand() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=2)
        for name in ("h1", "h2", "h3"):
            await crowd.come(name, AHEAD)
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
    slots, ticket = Slots(Concurrency.fixed(2)), Ticket(AHEAD)
    for _ in range(3):
        async with slots.hold(ticket, 1):
            assert slots.taken == 1
        slots.promote(ticket)
    assert slots.taken == 0


async def test_who_is_cancelled_while_waiting_takes_nothing_with_it() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=1)
        for name in ("d1", "d2", "d3"):
            await crowd.come(name)
        await crowd.cancel("d2")
        await crowd.leave("d1")
        assert crowd.inside == ["d3"]
        await crowd.cancel("d3")
    assert crowd.slots.taken == 0


async def test_a_slot_granted_together_with_the_cancellation_is_given_on() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, total=1)
        for name in ("d1", "d2", "d3"):
            await crowd.come(name)
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
        crowd = Crowd(nursery, total=4)
        slots, waiting = crowd.slots, set[str]()
        for number in range(80):
            name = random.choice(sorted(waiting)) if waiting else ""
            before = slots.taken
            match random.randrange(6):
                case 0 | 1:
                    await crowd.come(f"n{number}", random.choice(list(Urgency)))
                    waiting.add(f"n{number}")
                case 2 if crowd.inside:
                    gone = random.choice(crowd.inside)
                    await crowd.leave(gone)
                    waiting.discard(gone)
                case 3 if name:
                    await crowd.cancel(name)
                    waiting.discard(name)
                case 4 if name:
                    slots.promote(crowd.tickets[name], random.choice(list(Urgency)))
                    await trio.testing.wait_all_tasks_blocked()
                case 5:
                    crowd.concurrency.limit = random.randint(2, 6)
                    slots._grant()
                    await trio.testing.wait_all_tasks_blocked()
            assert slots.taken == len(crowd.inside) <= max(slots.limit, before)
            outside = {crowd.tickets[name].urgency for name in waiting - set(crowd.inside)}
            assert not outside or not slots._may_enter(min(outside))
        nursery.cancel_scope.cancel()
    assert crowd.slots.taken == 0


async def test_guesses_hold_no_more_than_their_share() -> None:
    """Of any limit, whoever comes first."""
    for limit in (2, 4, 5, 32):
        async with trio.open_nursery() as nursery:
            crowd = Crowd(nursery, total=limit)
            for number in range(limit + 1):
                await crowd.come(f"p{number}", PRELOAD)
            assert crowd.slots.taken == crowd.slots.share(PRELOAD)
            for number in range(limit + 1):
                await crowd.come(f"h{number}", AHEAD)
            assert crowd.slots.taken == crowd.slots.share(AHEAD)
            for number in range(limit + 1):
                await crowd.come(f"d{number}")
            assert crowd.slots.taken == limit
            nursery.cancel_scope.cancel()


@pytest.mark.autojump
async def test_a_preload_gives_way_while_somebody_reads() -> None:
    """Small requests of readers become slower the more preload is under way; without readers preload has its half."""
    slots = Slots(Concurrency.fixed(32))
    held = 0
    most = 0

    async def preload() -> None:
        nonlocal held, most
        while True:
            async with slots.hold(Ticket(PRELOAD), 4 * 1024**2):
                held += 1
                most = max(most, held)
                await trio.sleep(0.05)
                held -= 1

    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(preload)
            await trio.sleep(1)
            assert most == 16
            for _ in range(8 * STEP):
                async with slots.hold(Ticket(DEMAND), 4096):
                    await trio.sleep(0.01 * (1 + held / 4))
            most = held
            for _ in range(4 * STEP):
                async with slots.hold(Ticket(DEMAND), 4096):
                    await trio.sleep(0.01 * (1 + held / 4))
            assert most <= 4
            await trio.sleep(2)
            assert most == 16
            nursery.cancel_scope.cancel()
