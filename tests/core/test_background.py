"""What nobody waits for gives way to readers: as few requests as they do not feel, all when nobody reads."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.background import QUIET_S, SETTLING, STEP, Background

MOST = 16


def read(background: Background, now_s: float, took: float, requests: int = STEP) -> float:
    """Readers whose requests take so long, one after the other; the time afterwards."""
    for _ in range(requests):
        now_s += took
        background.observe(took, MOST, now_s)
    return now_s


def test_while_nobody_reads_there_is_no_limit() -> None:
    background = Background()
    assert background.allowed(MOST, 0.0) == MOST
    now_s = read(background, 0.0, 0.01, requests=1)
    assert background.allowed(MOST, now_s) < MOST
    assert background.allowed(MOST, now_s + QUIET_S + 0.001) == MOST


def test_what_readers_do_not_feel_is_allowed() -> None:
    background = Background()
    now_s = read(background, 0.0, 0.01, requests=STEP * (MOST + 2))
    assert background.allowed(MOST, now_s) == MOST


def follow(
    background: Background, now_s: float, took: Callable[[int], float], requests: int
) -> tuple[list[int], float]:
    """What is allowed, request by request, on an endpoint whose requests take so long beside so many; the time then."""
    seen = []
    for _ in range(requests):
        seen.append(background.allowed(MOST, now_s))
        now_s = read(background, now_s, took(seen[-1]), requests=1)
    return seen, now_s


def test_what_readers_feel_is_taken_back_and_tried_again() -> None:
    background = Background()
    now_s = read(background, 0.0, 0.01)
    seen, _ = follow(background, now_s, lambda others: 0.01 * (1 + others / 8), 100 * STEP)
    assert set(seen) <= {1, 2, 3, 4}, "with four they all take 1.33 times as long as with one"
    assert sum(seen) / len(seen) > 2
    assert sum(others == 4 for others in seen) < 0.1 * len(seen), "what they feel is rare"


def test_a_few_slow_ones_are_enough() -> None:
    background, chance = Background(), random.Random(1)
    now_s = read(background, 0.0, 0.01)
    seen, _ = follow(
        background, now_s, lambda others: 0.1 if chance.random() < (others - 1) / 100 else 0.01, 100 * STEP
    )
    assert sum(seen) / len(seen) < 3, "with three, a fiftieth is slow"


def test_an_endpoint_that_has_become_slower_is_measured_again() -> None:
    background = Background()
    now_s = read(background, 0.0, 0.01, requests=STEP * (MOST + 2))
    now_s = read(background, now_s, 0.1, requests=SETTLING + 2)
    assert background.allowed(MOST, now_s) < MOST
    seen, _ = follow(background, now_s, lambda _: 0.1, 100 * STEP)
    assert max(seen) == MOST


def test_few_readers_do_not_hold_it_at_one_for_long() -> None:
    background, now_s = Background(), 0.0
    for _ in range(120):
        now_s += 0.5
        background.observe(0.01, MOST, now_s)
    assert background.allowed(MOST, now_s) > MOST // 2


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5), st.integers(1, 200))))
def test_there_is_always_one_and_never_too_many(history: list[tuple[float, float, int]]) -> None:
    background, now_s = Background(), 0.0
    for took, pause, most in history:
        now_s += pause
        background.observe(took, most, now_s)
        assert 1 <= background.allowed(most, now_s) <= most
