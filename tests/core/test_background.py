"""What nobody waits for gives way to readers: as few requests as they do not feel, all when nobody reads."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.background import QUIET_S, WINDOW, WINDOWS_WITH_ONE, Background

MOST = 16


def read(background: Background, now_s: float, took: float, windows: int = 1) -> float:
    """Readers whose requests take so long, one after the other; the time afterwards."""
    for _ in range(windows * WINDOW):
        now_s += took
        background.observe(took, MOST, now_s)
    return now_s


def test_while_nobody_reads_there_is_no_limit() -> None:
    background = Background()
    assert background.allowed(MOST, 0.0) == MOST
    now_s = read(background, 0.0, 0.01)
    assert background.allowed(MOST, now_s) < MOST
    assert background.allowed(MOST, now_s + QUIET_S + 0.001) == MOST


def test_what_readers_do_not_feel_is_allowed() -> None:
    background = Background()
    now_s = read(background, 0.0, 0.01, windows=WINDOWS_WITH_ONE + MOST)
    assert background.allowed(MOST, now_s) == MOST


def follow(background: Background, now_s: float, took: Callable[[int], float], windows: int) -> tuple[list[int], float]:
    """What is allowed window by window on an endpoint whose requests take so long beside so many; the time then."""
    seen = []
    for _ in range(windows):
        seen.append(background.allowed(MOST, now_s))
        now_s = read(background, now_s, took(seen[-1]))
    return seen, now_s


def test_what_readers_feel_is_taken_back_and_tried_again() -> None:
    background = Background()
    now_s = read(background, 0.0, 0.01)
    seen, _ = follow(background, now_s, lambda others: 0.01 * (1 + others / 10), 200)
    assert set(seen) == {1, 2, 3, 4}, "four make it a quarter slower than one does"
    assert sum(seen) / len(seen) > 2


def test_an_endpoint_that_has_become_slower_is_measured_again() -> None:
    background = Background()
    seen, now_s = follow(background, 0.0, lambda _: 0.01, 40)
    assert seen[-1] == MOST
    seen, now_s = follow(background, now_s, lambda _: 0.1, 4)
    assert seen[-1] < MOST // 2
    seen, _ = follow(background, now_s, lambda _: 0.1, 40)
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
