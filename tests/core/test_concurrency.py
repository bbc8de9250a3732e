"""The number of requests in flight: by properties, and on simulated links."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.concurrency import CALM, HIGHEST, HOLD_S, INTERVAL_S, LOWEST, RETREAT, START, Concurrency
from tests.core.links import Client, Link, Second

KiB = 1024
EACH = 4 * 1024 * KiB / (0.025 + 4 * 1024 * KiB / 90e6)
"""Bytes per second of one connection that asks for 4 MiB again and again: 58.6 MB/s."""


def rate(seconds: list[Second]) -> float:
    return sum(second.bytes for second in seconds) / len(seconds)


def refused(seconds: list[Second]) -> float:
    """The share of all requests that were refused."""
    refusals = sum(second.refusals for second in seconds)
    return refusals / (refusals + sum(second.answers for second in seconds))


def limits(seconds: list[Second]) -> list[int]:
    return [second.limit for second in seconds]


# -- properties ---------------------------------------------------------------------------------------------------

finished = st.tuples(st.just("finished"), st.floats(0, 3), st.integers(0, 10**7), st.booleans())
throttled = st.tuples(st.just("throttled"), st.floats(0, 3), st.just(0), st.just(value=False))
events = st.lists(st.one_of(finished, finished, finished, throttled), max_size=300)
bounds = st.lists(st.integers(1, 40), min_size=3, max_size=3).map(sorted)


@given(bounds, events)
def test_whatever_happens_the_limit_keeps_its_bounds(
    bounds: list[int], events: list[tuple[str, float, int, bool]]
) -> None:
    lowest, start, highest = bounds
    concurrency, now_s = Concurrency(start=start, lowest=lowest, highest=highest), 0.0
    for what, after_s, size, is_wanted in events:
        now_s += after_s
        before = concurrency.limit
        if what == "finished":
            concurrency.observe_finished(size, now_s, is_wanted=is_wanted)
        else:
            concurrency.observe_throttled(now_s)
            assert concurrency.limit <= before
        assert lowest <= concurrency.limit <= highest
        assert concurrency.limit <= before + max(1, before // 2)


@given(st.integers(1, 40), events)
def test_a_fixed_one_never_changes(limit: int, events: list[tuple[str, float, int, bool]]) -> None:
    concurrency, now_s = Concurrency.fixed(limit), 0.0
    for what, after_s, size, is_wanted in events:
        now_s += after_s
        if what == "finished":
            concurrency.observe_finished(size, now_s, is_wanted=is_wanted)
        else:
            concurrency.observe_throttled(now_s)
        assert concurrency.limit == limit


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**7)), max_size=300))
def test_who_leaves_slots_unused_gets_no_more_and_loses_none(events: list[tuple[float, int]]) -> None:
    concurrency, now_s = Concurrency(), 0.0
    for after_s, size in events:
        now_s += after_s
        concurrency.observe_finished(size, now_s, is_wanted=False)
        assert concurrency.limit == START


@given(st.lists(st.floats(0, INTERVAL_S / 100), min_size=1, max_size=100))
def test_refusals_of_requests_that_were_sent_together_count_once(gaps: list[float]) -> None:
    concurrency, now_s = Concurrency(), 100.0
    for gap in gaps:
        concurrency.observe_throttled(now_s)
        now_s += gap * 0.99
    assert concurrency.limit == int(START * RETREAT)


def test_refusals_without_end_leave_the_lowest() -> None:
    concurrency = Concurrency()
    for second in range(100):
        concurrency.observe_throttled(float(second))
    assert concurrency.limit == LOWEST


# -- simulated links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_fast_link_is_filled_within_seconds(seed: int) -> None:
    seconds = Client(Link(capacity=12e9, seed=seed), Concurrency()).run(40)
    assert rate(seconds[5:]) >= 0.9 * 12e9
    assert max(limits(seconds)) <= HIGHEST


@pytest.mark.parametrize("capacity", [560e6, 1e9, 2e9, 4e9])
def test_a_link_is_filled_by_little_more_than_it_needs(capacity: float) -> None:
    needed = capacity / EACH
    seconds = Client(Link(capacity=capacity), Concurrency()).run(120)
    assert rate(seconds[5:]) >= 0.9 * capacity
    settled = limits(seconds[60:])
    assert sum(settled) / len(settled) <= max(1.5 * needed, CALM + 1)
    assert max(settled) <= max(2 * needed, 1.5 * CALM)
    # What it starts with is too many for 560 MB/s; from there it goes no further than one try.
    assert max(limits(seconds)) <= max(2.5 * needed, 1.5 * START)


@pytest.mark.parametrize("most", [8, 20, 40, 100])
def test_a_server_that_refuses_more_than_so_many_is_asked_by_nearly_so_many(most: int) -> None:
    link = Link(capacity=12e9, refuses=lambda _now_s, in_service, _random: in_service >= most)
    seconds = Client(link, Concurrency()).run(180)
    assert refused(seconds) <= 0.05
    assert rate(seconds[15:]) >= 0.8 * most * EACH
    assert refused(seconds[15:]) <= 0.005


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("capacity", "duration_s"), [(560e6, 240), (2e9, 240), (12e9, 45)])
def test_noise_moves_it_and_does_not_break_it(capacity: float, duration_s: int, seed: int) -> None:
    """A capacity that is off by up to 30 %, anew each second, looks like success or failure of any step."""
    seconds = Client(Link(capacity=capacity, noise=0.3, jitter=0.3, seed=seed), Concurrency()).run(duration_s)
    assert rate(seconds[5:]) >= 0.75 * capacity
    needed = capacity / EACH
    settled = limits(seconds[duration_s // 2 :])
    assert sum(settled) / len(settled) <= max(2 * needed, 1.5 * CALM)
    assert min(settled) >= min(0.5 * needed, CALM)


def test_after_a_storm_of_refusals_it_is_soon_where_it_was() -> None:
    def storm(now_s: float, _in_service: int, random: Random) -> bool:
        return 20 <= now_s < 40 and random.random() < 0.5

    seconds = Client(Link(capacity=5e9, refuses=storm), Concurrency()).run(90)
    before = rate(seconds[10:20])
    assert seconds[35].limit == LOWEST
    assert sum(second.answers for second in seconds[25:40]) > 0
    back = 40 + int(HOLD_S) + 10
    assert rate(seconds[back:]) >= 0.9 * before


def test_a_burst_that_ends_in_the_middle_of_a_try_changes_nothing() -> None:
    """Nor does the pause after it count as slowness, which anything would improve."""
    concurrency = Concurrency()
    client = Client(Link(capacity=560e6), concurrency)
    seconds = client.run(60, busy=lambda now_s: now_s % 10 < 1)
    assert set(limits(seconds)) <= {START, START * 3 // 2, *range(CALM, START)}
    assert concurrency.limit <= START


def test_small_requests_need_many_connections() -> None:
    seconds = Client(Link(capacity=12e9, size=256 * KiB), Concurrency()).run(20)
    assert seconds[10].limit >= 0.9 * HIGHEST
