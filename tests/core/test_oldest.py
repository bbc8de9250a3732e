from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.oldest import OldestFirst


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=20), st.integers(1, 60))
def test_the_oldest_go_and_no_more_than_it_takes(files: list[tuple[int, int]], need: int) -> None:
    oldest: OldestFirst[int] = OldestFirst(need=need, limit=100)
    for number, (stored_s, size) in enumerate(files):
        oldest.add(stored_s, size, number)
    expected: list[int] = []
    for number in sorted(range(len(files)), key=lambda one: (files[one][0], one)):
        if sum(files[one][1] for one in expected) >= need:
            break
        expected.append(number)
    assert oldest.chosen() == expected
    assert oldest.bytes == sum(files[one][1] for one in expected)
    assert not oldest.has_dropped


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=6, max_size=20))
def test_what_is_held_is_bounded(files: list[tuple[int, int]]) -> None:
    oldest: OldestFirst[int] = OldestFirst(need=1000, limit=5)
    for number, (stored_s, size) in enumerate(files):
        oldest.add(stored_s, size, number)
    assert oldest.has_dropped
    assert oldest.chosen() == sorted(range(len(files)), key=lambda one: (files[one][0], one))[:5]
