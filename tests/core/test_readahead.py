"""Read-ahead: a stream is followed wherever it runs, and nobody else pays for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.readahead import EMPTY, PROVEN, ReadAhead, ReadAheadPolicy
from lazyfs.core.types import Range

KiB, MiB, GiB = 1024, 1024**2, 1024**3
POLICY = ReadAheadPolicy()


@dataclass
class Reader:
    """One program that reads a file of `size` bytes, and what it was told."""

    ahead: ReadAhead
    size: int
    told: list[Range] = field(default_factory=list)

    def read(self, start: int, size: int) -> Range:
        span = Range(start, start + size).clamp(self.size)
        found = self.ahead.observe(span, self.size)
        if found != EMPTY:
            assert span.stop <= found.start < found.stop <= self.size
            assert found.stop - span.stop <= self.ahead.policy.max_window + 2 * max(self.ahead.policy.bridge, size)
            self.told.append(found)
        return found

    @property
    def told_bytes(self) -> int:
        return sum(span.size for span in self.told)


def new(size: int, policy: ReadAheadPolicy = POLICY) -> Reader:
    return Reader(ReadAhead(policy), size)


policies = st.builds(
    ReadAheadPolicy,
    first_window=st.integers(1, 64),
    max_window=st.integers(1, 256),
    growth=st.integers(0, 4),
    step=st.integers(1, 64),
    bridge=st.integers(0, 32),
    max_cursors=st.integers(1, 4),
)


@given(policies, st.integers(1, 4000), st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 64)), max_size=60))
def test_whatever_is_read_what_is_told_lies_ahead_and_inside(
    policy: ReadAheadPolicy, size: int, reads: list[tuple[int, int]]
) -> None:
    reader = new(size, policy)
    for start, length in reads:
        if start < size:
            reader.read(start, length)
    assert len(reader.ahead._cursors) <= policy.max_cursors
    for cursor in reader.ahead._cursors:
        assert cursor.position <= size
        assert cursor.fetched - cursor.position <= policy.max_window


@given(policies, st.integers(0, 500), st.lists(st.integers(1, 64), min_size=2, max_size=80))
def test_a_sequential_reader_is_told_every_byte_at_most_once(
    policy: ReadAheadPolicy, start: int, lengths: list[int]
) -> None:
    size = start + sum(lengths)
    reader, at = new(size, policy), start
    for length in lengths:
        reader.read(at, length)
        at += length
    for before, after in pairwise(reader.told):
        assert before.stop <= after.start
    assert len(reader.ahead._cursors) == 1


@pytest.mark.parametrize("request_size", [1, 4 * KiB, 100_000, 128 * KiB, MiB, 3 * MiB, 16 * MiB])
def test_a_sequential_reader_has_soon_the_whole_window_ahead(request_size: int) -> None:
    reader, at, size = new(100 * GiB), 0, 100 * GiB
    reader.read(at, request_size)
    first = reader.read(at + request_size, request_size)
    assert first.start == 2 * request_size  # the second read asks for the first window, and for what it has used up
    assert POLICY.first_window <= first.size <= POLICY.first_window + POLICY.growth * request_size
    at = 2 * request_size
    while at < 200 * MiB:
        # Without waiting for each byte of a one-byte reader: the state depends on positions only.
        step = request_size if request_size >= 4 * KiB else 256 * KiB
        reader.read(at + step - request_size, request_size)
        at += step
    cursor = reader.ahead._cursors[-1]
    ahead = cursor.fetched - cursor.position
    assert POLICY.max_window - 2 * POLICY.step <= ahead <= POLICY.max_window
    assert size > cursor.fetched


def test_a_reader_is_given_ahead_in_proportion_to_what_it_has_used_until_the_window_is_full() -> None:
    reader = new(GiB)
    reach = 0
    for at in range(0, 256 * MiB, 128 * KiB):
        told = reader.read(at, 128 * KiB)
        used = at + 128 * KiB
        reach = max(reach, told.stop)
        consumed = used - 128 * KiB
        growth = POLICY.growth if consumed >= PROVEN else 1
        wanted = min(POLICY.first_window + growth * consumed, POLICY.max_window)
        if at:
            assert wanted - 2 * POLICY.step < reach - used <= wanted


def test_large_windows_are_asked_for_in_steps_that_all_readers_share() -> None:
    reader = new(GiB)
    for at in range(0, 256 * MiB, 128 * KiB):
        reader.read(12_345 + at, 128 * KiB)
    late = [span for span in reader.told if span.start > 64 * MiB]
    assert {span.size for span in late} == {POLICY.step}
    assert {span.start % POLICY.step for span in late} == {0}


def test_the_end_of_the_file_is_told_at_once_and_only_once() -> None:
    reader = new(3 * MiB)
    told = [reader.read(at, 128 * KiB) for at in range(0, 3 * MiB, 128 * KiB)]
    assert [span for span in told if span != EMPTY][-1].stop == 3 * MiB
    assert reader.told_bytes == 3 * MiB - 256 * KiB


def test_a_small_memory_makes_even_the_first_window_small() -> None:
    reader = new(GiB, ReadAheadPolicy(max_window=MiB))
    reader.read(0, 4 * KiB)
    assert reader.read(4 * KiB, 4 * KiB).size == MiB


def test_one_read_tells_nothing() -> None:
    assert new(GiB).read(0, MiB) == EMPTY


def test_looking_again_at_the_same_place_tells_nothing() -> None:
    reader = new(GiB)
    for _ in range(10):
        assert reader.read(5 * MiB, 64 * KiB) == EMPTY


@pytest.mark.parametrize("seed", range(10))
def test_random_readers_get_next_to_nothing(seed: int) -> None:
    random = Random(seed)
    reader = new(100 * GiB)
    for _ in range(1000):
        reader.read(random.randrange(100 * GiB - 4 * KiB), 4 * KiB)
    assert len(reader.told) <= 2


def test_random_readers_of_far_places_get_nothing() -> None:
    reader = new(100 * GiB)
    places = [(index * 7919) % 1009 * 64 * MiB for index in range(1000)]
    for place in places:
        assert reader.read(place, 64 * KiB) == EMPTY


@pytest.mark.parametrize("request_size", [4 * KiB, 128 * KiB, 512 * KiB, MiB])
@pytest.mark.parametrize("first_swapped", [0, 1])
def test_neighbouring_requests_that_change_places_are_still_one_stream(request_size: int, first_swapped: int) -> None:
    reader = new(GiB)
    order = list(range(256))
    for index in range(first_swapped, 255, 2):
        order[index], order[index + 1] = order[index + 1], order[index]
    for number in order:
        reader.read(number * request_size, request_size)
    for before, after in pairwise(reader.told):
        assert before.stop <= after.start
    straight = new(GiB)
    for number in range(256):
        straight.read(number * request_size, request_size)
    assert reader.told[-1].stop >= straight.told[-1].start
    assert len(reader.ahead._cursors) <= 2  # the very first pair may leave a cursor behind


@pytest.mark.parametrize("streams", [2, 8])
def test_interleaved_streams_each_get_theirs(streams: int) -> None:
    reader = new(64 * GiB)
    reach = dict.fromkeys(range(streams), 0)
    for step in range(2000):
        for stream in range(streams):
            start = stream * 8 * GiB + step * 128 * KiB
            told = reader.read(start, 128 * KiB)
            if told != EMPTY:
                assert stream * 8 * GiB <= told.start < (stream + 1) * 8 * GiB
                reach[stream] = told.stop - start - 128 * KiB
    assert all(POLICY.max_window - POLICY.step <= ahead <= POLICY.max_window for ahead in reach.values())


def test_the_stream_that_was_not_seen_for_longest_is_forgotten() -> None:
    reader = new(GiB, ReadAheadPolicy(max_cursors=2))
    reader.read(0, KiB)
    reader.read(100 * MiB, KiB)
    reader.read(200 * MiB, KiB)
    assert reader.read(KiB, KiB) == EMPTY
    assert reader.read(200 * MiB + KiB, KiB) != EMPTY


def test_reading_backwards_tells_nothing() -> None:
    size = 64 * MiB
    for step in (4 * KiB, 64 * KiB, MiB):
        reader = new(size)
        for at in range(size - step, size - 40 * step, -step):
            assert reader.read(at, step) == EMPTY


def test_a_mapping_read_around_its_page_faults_is_one_stream() -> None:
    """As the kernel sends them (seen on 6.18, read_ahead_kb 1024): of each 4 MiB the last part first, then the rest."""
    reader = new(GiB)
    reader.read(0, MiB)
    around: list[tuple[float, float]] = [(3.5, 1), (1, 1), (2, 1), (3, 0.5)]
    for turn in range(20):
        for at, size in around:
            reader.read(int((at + 4 * turn) * MiB), int(size * MiB))
    cursor = max(reader.ahead._cursors, key=lambda cursor: cursor.position)
    assert cursor.fetched - cursor.position >= POLICY.max_window - 2 * POLICY.step
    for before, after in pairwise(reader.told[2:]):
        assert before.stop <= after.start


def test_random_readers_of_a_small_file_are_told_little_more_than_they_read() -> None:
    """Among 128 MiB many reads happen to be neighbours."""
    random = Random(5)
    reader = new(128 * MiB)
    for _ in range(200):
        reader.read(random.randrange(512) * 256 * KiB, 256 * KiB)
    assert reader.told_bytes <= 200 * 256 * KiB // 2


def test_a_footer_first_tells_nothing_wrong() -> None:
    """As parquet is read: the last 8 bytes, the footer before them, then column chunks from the front."""
    size = GiB
    reader = new(size)
    assert reader.read(size - 8, 8) == EMPTY
    assert reader.read(size - 64 * KiB, 64 * KiB - 8) == EMPTY
    assert reader.read(4, 128 * KiB) == EMPTY
    assert reader.read(4 + 128 * KiB, 128 * KiB).start == 4 + 256 * KiB
