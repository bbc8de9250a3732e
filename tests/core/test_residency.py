"""Ranges of what is here, globs and selections: by properties where there is arithmetic."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.errors import UsageError
from lazyfs.core.places import Pattern, has_magic, is_text, split_pattern
from lazyfs.core.residency import State, format_ranges, format_tiers, ranges_of, runs_of, state_of_clean, total, union
from lazyfs.core.selection import Selection, parse_size_bounds, parse_states
from lazyfs.core.types import Range

BLOCKS = st.sets(st.integers(0, 40))


def bytes_of(ranges: list[Range]) -> set[int]:
    return {byte for span in ranges for byte in range(*span)}


@given(st.lists(BLOCKS, max_size=3), st.integers(1, 9), st.integers(0, 300))
def test_ranges_are_the_bytes_of_the_blocks(tiers: list[set[int]], block_size: int, size: int) -> None:
    expected = [
        {byte for block in tier for byte in range(block * block_size, (block + 1) * block_size)} for tier in tiers
    ]
    ranges = [ranges_of(runs_of(sorted(tier)), block_size, size) for tier in tiers]
    for spans, wanted in zip(ranges, expected, strict=True):
        assert bytes_of(spans) == {byte for byte in wanted if byte < size}
    merged = union(*ranges)
    assert bytes_of(merged) == set().union(*map(bytes_of, ranges))
    assert total(merged) == len(bytes_of(merged))
    assert all(before.stop < after.start for before, after in itertools.pairwise(merged))


def test_states() -> None:
    assert [state_of_clean(10, here) for here in (0, 1, 9, 10)] == ["released", "partial", "partial", "archived"]
    assert state_of_clean(0, 0) is State.ARCHIVED


def test_ranges_as_text() -> None:
    spans = [Range(0, 4), Range(8, 12)]
    assert format_ranges(spans) == "0-4,8-12"
    assert format_tiers([("memory", spans), ("disk", [])], limit=99) == "memory 0-4,8-12"
    assert format_tiers([("memory", spans)], limit=13) == "memory 0-4…"


@pytest.mark.parametrize(
    ("path", "begins", "pattern"),
    [("a/*.jpg", "a", ("*.jpg",)), ("*/b/[ab]", "", ("*", "b", "[ab]")), ("a/b", "a/b", ())],
)
def test_where_a_pattern_begins(path: str, begins: str, pattern: tuple[str, ...]) -> None:
    assert split_pattern(path) == (begins, pattern)
    assert has_magic(path) == bool(pattern)


def test_a_pattern_matches_as_a_shell_does() -> None:
    pattern = Pattern(("d?", "*.jpg"))
    assert pattern.matches(0, "d1")
    assert not pattern.matches(0, "d12")
    assert not pattern.matches(1, ".hidden.jpg")
    assert pattern.matches(2, "anything")


def test_what_can_be_a_path() -> None:
    assert is_text("")
    assert is_text("ä/b")
    assert not is_text("a\0b")
    assert not is_text("\udcff")


@pytest.mark.parametrize(
    ("text", "bounds"), [("+1KiB", (1025, None)), ("-1KiB", (None, 1023)), ("5", (5, 5)), (" +0 ", (1, None))]
)
def test_sizes_as_find_has_them(text: str, bounds: tuple[int | None, int | None]) -> None:
    assert parse_size_bounds(text) == bounds


@pytest.mark.parametrize("text", ["", "+", "-x", "many", "++1"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size_bounds(text)


def test_states_of_a_user() -> None:
    assert parse_states("released, Partial") == {"released", "partial"}
    with pytest.raises(UsageError, match="sleeping"):
        parse_states("released,sleeping")


@given(
    st.builds(
        Selection,
        states=st.none() | st.frozensets(st.sampled_from([state.value for state in State])),
        name=st.none() | st.text(max_size=3),
        smallest=st.none() | st.integers(0, 9),
        largest=st.none() | st.integers(0, 9),
    )
)
def test_a_selection_survives_the_socket(selection: Selection) -> None:
    assert Selection.load(selection.dump()) == selection


def test_a_selection() -> None:
    chosen = Selection(name="*.jpg", smallest=2, largest=4)
    assert chosen.fits_entry("a.jpg", 3, is_file=True)
    assert not chosen.fits_entry("a.png", 3, is_file=True)
    assert not chosen.fits_entry("a.jpg", 1, is_file=True)
    assert not chosen.fits_entry("a.jpg", 5, is_file=True)
    assert not chosen.fits_entry("a.jpg", 3, is_file=False)
    assert Selection().fits_entry("d", 0, is_file=False)
    assert Selection(states=frozenset({"dirty"})).fits_state("dirty")
    assert not Selection(states=frozenset({"dirty"})).fits_state("partial")
