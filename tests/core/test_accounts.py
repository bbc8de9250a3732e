"""What a run's report counts with: passes over files, directories, the beginning, the throughput."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.beginning import FIRST_BYTES, FIRST_FILES, Beginning
from lazyfs.core.directories import Directories
from lazyfs.core.passes import LATEST, PAGE, Passes
from lazyfs.core.throughput import Throughput

# -- passes -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40)))
def test_a_pass_is_how_often_the_file_was_opened_so_far(inos: list[int]) -> None:
    passes, opened = Passes(), Counter[int]()
    for ino in inos:
        opened[ino] += 1
        assert passes.begin(ino) == min(opened[ino], LATEST)
    assert passes.files == len(opened)


@given(st.lists(st.integers(1, 20 * PAGE)), st.integers(1, 3))
def test_passes_take_no_more_than_their_pages(inos: list[int], pages: int) -> None:
    passes = Passes(pages=pages)
    followed = {ino for ino in inos if passes.begin(ino)}
    assert len(passes._pages) <= pages
    assert passes.files == len(followed)
    assert {ino // PAGE for ino in followed} == set(passes._pages)


def test_late_passes_are_one() -> None:
    passes = Passes()
    assert [passes.begin(7) for _ in range(LATEST + 300)][-1] == LATEST
    assert passes.files == 1


# -- directories --------------------------------------------------------------------------------------------------

names = st.lists(st.sampled_from("abc"), max_size=4).map("/".join)


@given(st.lists(st.tuples(names, st.integers(0, 1), st.integers(0, 9)), max_size=60), st.integers(1, 6))
def test_nothing_is_lost_in_a_full_table(events: list[tuple[str, int, int]], limit: int) -> None:
    table = Directories(limit=limit)
    for path, files, size in events:
        table.add(path, files=files, opens=1, size=size)
    assert len(table) <= limit
    rows = table.hottest(1000)
    assert sum(row.bytes for _, row in rows) == sum(size for _, _, size in events)
    assert sum(row.files for _, row in rows) == sum(files for _, files, _ in events)
    assert sum(row.opens for _, row in rows) == len(events)
    exact = {path for path, _, _ in events}
    assert table.opened() in ({path for path, _, _ in events}, None)
    assert (table.opened() is None) == (len(exact - {""}) > limit - 1)
    for name, row in rows:
        below = [event for event in events if event[0] == name or not name or event[0].startswith(name + "/")]
        exact = [event for event in events if event[0] == name]
        assert sum(event[2] for event in exact) <= row.bytes <= sum(event[2] for event in below)
        if not row.is_sum:
            assert row.bytes == sum(event[2] for event in exact)


def test_the_hottest_come_first_and_what_was_never_opened_not_at_all() -> None:
    table = Directories()
    table.add("a", opens=1, size=5)
    table.add("b/c", opens=9, size=5)
    table.add("d", opens=1, size=70)
    assert [path for path, _ in table.hottest(10)] == ["d", "b/c", "a"]
    assert [path for path, _ in table.hottest(1)] == ["d"]


# -- the beginning ------------------------------------------------------------------------------------------------


def test_the_first_batch_is_so_many_files_or_so_many_bytes() -> None:
    files = Beginning()
    files.opened(1)
    files.read(0, 1.5)
    assert (files.first_open_s, files.first_byte_s) == (1, None)
    for number in range(FIRST_FILES):
        assert not files.is_over
        files.opened(2 + number)
        files.read(1, 2.5 + number)
        files.closed(3 + number)
    assert (files.first_open_s, files.first_byte_s, files.first_batch_s) == (1, 2.5, 2 + FIRST_FILES)
    shard = Beginning()
    shard.opened(1)
    shard.read(FIRST_BYTES - 1, 2)
    assert not shard.is_over
    shard.read(1, 3)
    shard.read(FIRST_BYTES, 4)
    assert (shard.first_byte_s, shard.first_batch_s) == (2, 3)


# -- throughput ---------------------------------------------------------------------------------------------------

requests = st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 20), st.integers(0, 10**6)), min_size=1, max_size=40)


@given(requests)
def test_bytes_and_busy_time_are_exact_and_the_best_second_holds_no_more_than_came(
    requests: list[tuple[float, float, int]],
) -> None:
    through = replay(requests)
    assert through.bytes == sum(size for _, _, size in requests)
    assert through.busy_s == pytest.approx(union([(began, began + took) for began, took, _ in requests]))
    fastest = sum(size / min(took, 1) for _, took, size in requests)
    assert through.mean <= through.best <= fastest * (1 + 1e-9) + 1e-6
    assert sum(through._seconds.values()) == pytest.approx(through.bytes)


def test_a_steady_stream_is_told_as_what_it_is_however_its_requests_end() -> None:
    together = replay([(float(4 * turn), 4.0, 1000) for turn in range(10) for _ in range(8)])  # all end at once
    assert together.mean == pytest.approx(2000)
    assert together.best == pytest.approx(2000)


def test_a_long_run_keeps_its_best_second_and_little_else() -> None:
    through = Throughput()
    for second in range(5000):
        through.began(second)
        through.ended(second, 900 if second == 3 else 10, second + 0.5)
    assert through.best == 900
    assert len(through._seconds) <= 512


def test_a_restart_knows_what_is_on_its_way() -> None:
    through = Throughput()
    through.began(0)
    again = through.restarted(10)
    assert (again.bytes, again.busy_s, again.best, again.mean) == (0, 0, 0, 0)
    again.ended(0, 100, 12)
    assert (again.bytes, again.busy_s) == (100, 2)


def replay(requests: list[tuple[float, float, int]]) -> Throughput:
    through = Throughput()
    events = sorted(
        event
        for number, (began, took, _) in enumerate(requests)
        for event in ((began, 0, number), (began + took, 1, number))
    )
    for at, is_end, number in events:
        began, _, size = requests[number]
        if is_end:
            through.ended(began, size, at)
        else:
            through.began(at)
    return through


def union(spans: list[tuple[float, float]]) -> float:
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
