"""Ranges, parts, backoff, units: arithmetic by properties."""

from __future__ import annotations

import contextlib
import hashlib
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.backoff import Backoff
from lazyfs.core.errors import UsageError
from lazyfs.core.parts import (
    MAX_OBJECT_SIZE,
    MAX_PART_SIZE,
    MAX_PARTS,
    MIN_PART_SIZE,
    PartSizes,
    multipart_etag,
)
from lazyfs.core.ranges import RangeSpec, block_range, block_runs, blocks_of, parse_range, plan_extents, plan_runs
from lazyfs.core.types import ANY, Condition, ObjectId, ObjectInfo, Part, Range
from lazyfs.core.units import format_duration, format_size, parse_duration, parse_size

KiB, MiB, GiB, TiB = 1024, 1024**2, 1024**3, 1024**4
sizes = st.integers(0, 2000)

# -- ranges -------------------------------------------------------------------------------------------------------


@given(sizes, sizes, sizes)
def test_clamping_keeps_exactly_the_bytes_inside(start: int, length: int, size: int) -> None:
    span = Range(start, start + length)
    clamped = span.clamp(size)
    assert set(range(*clamped)) == set(range(*span)) & set(range(size))
    assert clamped.size >= 0


@given(sizes, sizes, st.integers(1, 64))
def test_the_blocks_of_a_range_are_those_it_touches(start: int, length: int, block_size: int) -> None:
    expected = sorted({byte // block_size for byte in range(start, start + length)})
    assert list(blocks_of(Range(start, start + length), block_size)) == expected


@given(sizes, st.integers(1, 64))
def test_the_blocks_of_an_object_cover_it_without_overlap(size: int, block_size: int) -> None:
    at = 0
    for block in blocks_of(Range(0, size), block_size):
        span = block_range(block, block_size, size)
        assert span.start == at
        assert 0 < span.size <= block_size
        at = span.stop
    assert at == size


specs = st.one_of(
    st.builds(RangeSpec, sizes, st.none()),
    st.builds(RangeSpec, st.none(), sizes),
    st.tuples(sizes, st.integers(1, 500)).map(lambda pair: RangeSpec(pair[0], pair[0] + pair[1])),
)


@given(st.lists(specs, max_size=5), sizes, st.integers(1, 64))
def test_runs_of_blocks_are_what_the_ranges_touch_and_lie_apart(
    wanted: list[RangeSpec], size: int, block_size: int
) -> None:
    def touches(spec: RangeSpec) -> set[int]:
        if spec.start is None:
            return set(range(max(0, size - (spec.stop or 0)), size))
        return set(range(spec.start, size if spec.stop is None else min(spec.stop, size)))

    runs = block_runs(wanted, size, block_size)
    touched = {byte // block_size for spec in wanted for byte in touches(spec)}
    assert [block for run in runs for block in run] == sorted(touched)
    assert all(before.stop < after.start for before, after in pairwise(runs))


def test_ranges_as_people_write_them() -> None:
    assert parse_range("0-1MiB") == RangeSpec(0, MiB)
    assert parse_range("1GiB-").of(3 * GiB) == Range(GiB, 3 * GiB)
    assert parse_range(" -64KiB ").of(MiB) == Range(MiB - 64 * KiB, MiB)
    assert parse_range("-64KiB").of(10) == Range(0, 10)
    assert parse_range("5MiB-6MiB").of(10).size == 0
    for bad in ("", "-", "5", "x-y", "2MiB-1MiB", "1-1", "1--2"):
        with pytest.raises(UsageError):
            parse_range(bad)


@given(st.sets(st.integers(0, 60)), st.integers(1, 9))
def test_extents_are_exactly_the_blocks_in_as_few_runs_as_allowed(blocks: set[int], max_blocks: int) -> None:
    extents = plan_extents(sorted(blocks), max_blocks)
    assert [block for extent in extents for block in extent] == sorted(blocks)
    assert all(1 <= len(extent) <= max_blocks for extent in extents)
    for left, right in pairwise(extents):
        assert left.stop < right.start or len(left) == max_blocks
    backward = plan_extents(sorted(blocks, reverse=True), max_blocks)
    assert [block for extent in backward for block in reversed(extent)] == sorted(blocks, reverse=True)
    assert [len(extent) for extent in backward] == [len(run) for run in _mirrored(blocks, max_blocks)]


def _mirrored(blocks: set[int], max_blocks: int) -> list[range]:
    """The extents of the blocks' mirror image."""
    return plan_extents(sorted(60 - block for block in blocks), max_blocks)


@given(st.sets(st.integers(0, 60)), st.integers(1, 9))
def test_runs_begin_where_one_looks_for_them(blocks: set[int], max_blocks: int) -> None:
    runs = plan_runs(sorted(blocks), max_blocks)
    assert [block for run in runs for block in run] == sorted(blocks)
    for run in runs:
        assert len(run) == 1 or (run.start % max_blocks == 0 and len(run) <= max_blocks)
    for left, right in pairwise(runs):
        goes_on = left.stop == right.start and left.start % max_blocks == 0 and len(left) < max_blocks
        assert not goes_on, "what could be in one run is"


# -- parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [MIN_PART_SIZE, 8 * MiB, 64 * MiB, 100 * MiB + 1, GiB, MAX_PART_SIZE])
def test_parts_keep_the_limits_of_s3(first: int) -> None:
    parts = PartSizes(first)
    total = 0
    for number in range(1, MAX_PARTS + 1):
        size = parts.size(number)
        assert MIN_PART_SIZE <= size <= MAX_PART_SIZE
        assert size <= max(first, total // 400)  # a short file never pays for a long one
        total += size
    assert total == parts.reach <= MAX_OBJECT_SIZE


def test_parts_reach_what_the_documentation_says() -> None:
    assert PartSizes(8 * MiB).reach / TiB == pytest.approx(7.8, abs=0.05)
    assert PartSizes(64 * MiB).reach / TiB == pytest.approx(22, abs=0.5)
    assert PartSizes(MAX_PART_SIZE).reach == MAX_OBJECT_SIZE
    assert 48 * TiB < MAX_OBJECT_SIZE


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=20))
def test_the_etag_of_a_multipart_object(bodies: list[bytes]) -> None:
    parts = [Part(n, hashlib.md5(body).hexdigest(), len(body)) for n, body in enumerate(bodies, 1)]
    joined = "".join(hashlib.md5(body).hexdigest() for body in bodies)
    assert multipart_etag(parts) == hashlib.md5(bytes.fromhex(joined)).hexdigest() + f"-{len(bodies)}"


def test_a_known_multipart_etag() -> None:
    """Computed with md5sum and xxd, not with this code."""
    assert multipart_etag([Part(1, "d41d8cd98f00b204e9800998ecf8427e", 0)]) == "59adb24ef3cdbe0297f05b395827453f-1"


@pytest.mark.parametrize("etag", ["", "not hex", "abcd", "d41d8cd98f00b204e9800998ecf8427e-1", "d41d8cd9" * 5])
def test_part_etags_that_are_no_md5_give_no_multipart_etag(etag: str) -> None:
    assert multipart_etag([Part(1, etag, 1)]) is None


# -- backoff ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.floats(0, 100), st.floats(0, 1, exclude_max=True))
def test_a_delay_grows_to_its_cap_and_ends_before_the_deadline(attempt: int, elapsed_s: float, lot: float) -> None:
    backoff = Backoff(base_s=0.1, cap_s=10.0, deadline_s=60.0)
    delay_s = backoff.delay_s(attempt, elapsed_s, lambda: lot)
    ceiling = min(10.0, 0.1 * 2.0 ** min(attempt - 1, 100))
    expected = ceiling * (0.25 + 0.75 * lot)
    if elapsed_s + expected < 60.0:
        assert delay_s == pytest.approx(expected)
        assert ceiling / 4 <= delay_s < ceiling
    else:
        assert delay_s is None


def test_retries_end_even_if_every_draw_is_zero() -> None:
    backoff, elapsed_s, attempts = Backoff(), 0.0, 0
    while (delay_s := backoff.delay_s(attempts + 1, elapsed_s, lambda: 0.0)) is not None:
        elapsed_s += delay_s
        attempts += 1
    assert elapsed_s < backoff.deadline_s
    assert attempts < 40


# -- units --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1))
def test_plain_bytes_are_exact(size: int) -> None:
    assert parse_size(str(size)) == size
    assert parse_size(f" {size} B ") == size


@pytest.mark.parametrize("unit", ["K", "kb", "KiB", "kib", "Ki"])
@pytest.mark.parametrize("space", ["", " "])
def test_every_spelling_of_a_unit_is_the_same(unit: str, space: str) -> None:
    assert parse_size(f"3{space}{unit}") == 3 * KiB


def test_sizes_as_people_write_them() -> None:
    assert parse_size("8MiB") == 8 * MiB
    assert parse_size("20G") == 20 * GiB
    assert parse_size("1.5 TiB") == TiB * 3 // 2
    assert parse_size("0.1g") == GiB // 10


JUNK = ["", " ", "-1", "+1", "1e6", "1.", ".5", "1,5", "ten", "5PB", "5i", "5iB", "5 M B", "0x10", "nan", "inf", "٣",
        "1_0", "9" * 21, "9" * 5000, "1\n2"]  # fmt: skip


@pytest.mark.parametrize("text", [*JUNK, "5h", "5m s"])
def test_junk_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", [*JUNK, "5 k", "1h30m", "5ſ", "s", "5 min"])
def test_junk_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        parse_duration(text)


@given(st.text(max_size=8))
def test_any_text_is_a_number_or_a_usage_error(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with contextlib.suppress(UsageError):
            assert parse(text) >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60", 60), ("60s", 60), ("500ms", 0.5), ("5m", 300), ("12h", 43_200), ("7d", 604_800), ("0", 0), ("1.5 M", 90)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


def test_for_ever() -> None:
    assert parse_duration(" Indefinite ") == parse_duration("infinite") == math.inf
    assert format_duration(math.inf) == "indefinite"
    assert parse_duration(format_duration(math.inf)) == math.inf


@given(st.integers(0, 10**15))
def test_a_size_told_to_a_person_reads_back_as_nearly_itself(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06, abs=1)


def test_formats() -> None:
    assert [format_size(size) for size in (0, 1023, 1536, 5 * MiB, 3 * GiB // 2, 2048 * TiB)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 MiB", "1.5 GiB", "2048.0 TiB"]  # fmt: skip
    assert [format_duration(seconds) for seconds in (0, 0.25, 1.4, 200, 3600, 90_000)] == [
        "0 ms", "250 ms", "1.4 s", "3 min 20 s", "1 h 0 min", "25 h 0 min"]  # fmt: skip


# -- types --------------------------------------------------------------------------------------------------------


def test_what_identifies_an_object() -> None:
    assert ObjectInfo("k", "e", 1, 2).oid == ObjectId("k", "e")
    assert not ANY.is_set
    assert Condition(absent=True).is_set
    assert Condition(etag="e").is_set
