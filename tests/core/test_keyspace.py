"""Dividing a key space: every key is listed once, whoever takes what, and also after a kill."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazyfs.core.keyspace import WORTH_A_CUT, KeySpace, Segment, midpoint

letters = st.sampled_from([*"ab/0~é", "\x01", "\x1f", " ", "\x7f", "\ud7ff", "\ue000", "\uffff", "\U0010ffff"])
keys = st.text(letters, max_size=5)


@given(keys, st.none() | keys)
@example("\ud7ffx", "\ue000")
@example("\ud7ff", "\ue000")
@example("a", "a\x01b")
@example("\x01", "0")
@example("\U0010ffff", None)
@example("~~~", None)
def test_a_midpoint_lies_strictly_between(low: str, high: str | None) -> None:
    middle = midpoint(low, high)
    if middle is None:
        return
    assert low < middle
    assert high is None or middle < high
    middle.encode()  # no surrogate
    assert all(character >= " " or character in low + (high or "") for character in middle)


@given(keys)
def test_nothing_lies_between_a_key_and_itself_or_less(key: str) -> None:
    assert midpoint(key, key) is None
    assert midpoint(key + "a", key) is None


@pytest.mark.parametrize(
    ("low", "high"), [("", None), ("a", "b/"), ("a/000", "a/999"), ("img-1", "img-9"), ("a", None)]
)
def test_where_there_is_room_a_midpoint_is_found(low: str, high: str | None) -> None:
    assert midpoint(low, high) is not None


def test_halving_again_and_again_reaches_any_key() -> None:
    low, high, target = "data/train/0000000.jpg", "data/train/9999999.jpg", "data/train/4242424.jpg"
    for _ in range(64):
        middle = midpoint(low, high)
        if middle is None or middle == target:
            break
        low, high = (middle, high) if middle < target else (low, middle)
        assert low < target < high
    assert len(low) <= len(target) + 1


# -- workers ------------------------------------------------------------------------------------------------------


def coverage(space: KeySpace) -> None:
    """The segments are the whole key space, without a gap or an overlap."""
    ordered = sorted(space.segments, key=lambda segment: segment.start)
    assert ordered[0].start == ""
    for left, right in zip(ordered, [*ordered[1:], None], strict=True):
        assert left.stop == (None if right is None else right.start)
        assert left.start <= left.cursor


@given(
    st.sets(st.text(st.sampled_from("abc0123/~é"), min_size=1, max_size=6), min_size=1, max_size=120),
    st.integers(1, 4),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
    st.integers(0, 60),
)
def test_each_key_is_listed_once_by_one_worker(
    bucket: set[str], page: int, workers: int, random: object, killed_after: int
) -> None:
    ordered, listed = sorted(bucket), []
    space, held, step = KeySpace(), list[Segment](), 0
    while not space.done:
        step += 1
        assert step < 10_000
        if step == killed_after:  # and a new daemon goes on with what was written down
            left = space.dump()
            space, held = KeySpace.load(left), []
            assert space.dump() == left
            continue
        if len(held) < workers and (segment := space.take()) is not None:
            assert segment.taken
            assert segment not in held
            held.append(segment)
        if step < killed_after or killed_after == 0:
            coverage(space)
        if not held:
            continue
        segment = random.choice(held)  # type: ignore[attr-defined]
        found = [key for key in ordered if key > segment.cursor][: page + 1]
        upto = found[page - 1] if len(found) > page else None
        if segment.stop is not None and (upto is None or upto >= segment.stop):
            upto = segment.stop
        listed += [key for key in found[:page] if upto is None or key <= upto]
        space.advance(segment, upto)
        if segment.done:
            held.remove(segment)
    assert sorted(listed) == ordered
    assert space.take() is None
    assert all(done for *_, done in space.dump())


def test_a_listing_begins_with_one_segment_and_is_not_cut_before_it_has_proven_large() -> None:
    space = KeySpace()
    first = space.take()
    assert first is not None
    assert space.cuts() == []
    assert space.take() is None
    space.advance(first, "a/1")
    second = space.take()  # one full page, and no end in sight
    assert second is not None
    assert first.stop == second.start == second.cursor
    assert space.cuts() == [second.start]


def test_a_segment_that_is_nearly_done_is_left_to_its_worker() -> None:
    segment = Segment("a", "a9", "a")
    space = KeySpace([segment])
    assert space.take() is segment
    for cursor in ("a1", "a2", "a8"):
        space.advance(segment, cursor)
    assert 0 < segment.pages_left < WORTH_A_CUT
    assert space.take() is None


def test_a_segment_that_cannot_be_cut_does_not_hide_another_that_can() -> None:
    tight = Segment("a", "a\x01", "a", taken=True, pages=9, first="a")
    loose = Segment("b", None, "b", taken=True, pages=9, first="b0")
    space = KeySpace([tight, loose])
    assert tight.pages_left == inf
    found = space.take()
    assert found is not None
    assert found.start > "b"
