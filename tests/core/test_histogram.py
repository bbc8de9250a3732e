"""Durations in buckets: what a histogram says is what a sorted list of them would say, within an eighth."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.histogram import POWERS_S, Histogram, bucket_of, cumulative, upper_bound_ns

LONGEST_NS = 2**32 * 1000
durations = st.lists(st.one_of(st.integers(0, 10**6), st.integers(0, LONGEST_NS)), max_size=60)


def of(values: list[int]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(st.integers(1, LONGEST_NS))
def test_a_bucket_ends_at_most_an_eighth_above_what_falls_into_it(value: int) -> None:
    bucket = bucket_of(value)
    assert value <= upper_bound_ns(bucket) <= value + max(1000, value // 8 + 1000)
    assert bucket == 0 or upper_bound_ns(bucket - 1) < value


def test_buckets_are_in_order_without_a_gap_and_their_number_is_bounded() -> None:
    last = bucket_of(10**18)
    assert last == bucket_of(LONGEST_NS) == len(Histogram()._counts) - 1
    bounds = [upper_bound_ns(bucket) for bucket in range(last + 1)]
    assert bounds == sorted(set(bounds))
    assert [bucket_of(bound) for bound in bounds] == list(range(last + 1))
    assert [bucket_of(bound + 1) for bound in bounds[:-1]] == list(range(1, last + 1))
    assert bucket_of(-5) == 0


@given(durations, st.floats(0.01, 1))
def test_a_quantile_is_never_less_than_it_is_and_hardly_more(values: list[int], share: float) -> None:
    found = of(values).quantile_ns(share)
    if not values:
        assert found == 0
        return
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    assert exact <= found <= exact * 9 / 8 + 1000


@given(durations, durations)
def test_two_add_up_and_the_difference_is_the_other_one(one: list[int], two: list[int]) -> None:
    both = of(one)
    both.merge(of(two))
    assert both.told() == of(one + two).told()
    assert both.since(of(one)).told() == of(two).told()
    assert both.since(None).told() == both.told()


@given(durations)
def test_what_is_told_is_enough_for_cumulative_counts(values: list[int]) -> None:
    made = of(values)
    told = made.told()
    assert Histogram.of_told(told).told() == told
    assert told["count"] == len(values) == sum(count for _, count in told["buckets"])
    assert told["sum_s"] == pytest.approx(sum(values) / 1e9)
    assert told["p50_s"] <= told["p99_s"] <= told["max_s"]
    exact = [sum(value <= 2**exponent * 1000 for value in values) for exponent in range(8, 27)]
    assert cumulative(told, POWERS_S) == exact
