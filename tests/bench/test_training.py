"""The loader and the accelerator, on a plain directory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import pytest

from lazyfs.bench.training import PREFETCH, BenchError, Job, Timeline, train

NAMES = [f"d{number // 20}/{number:03}" for number in range(50)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() * (number + 1))
    return tmp_path


class Seen:
    """A check that writes down what it is told."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.digests: dict[str, bytes] = {}

    def __call__(self, name: str, size: int, digest: bytes) -> None:
        assert size == len(name) * (NAMES.index(name) + 1)
        self.names.append(name)
        self.digests[name] = digest


def run(data: Path, job: Job, seen: Seen, names: list[str] = NAMES) -> Timeline:
    return train(data, names, job, check=seen, began_s=time.monotonic())


def test_every_file_is_read_once_an_epoch_and_whole(data: Path) -> None:
    seen, job = Seen(), Job(batch=8, workers=3, compute_s=0, epochs=2)
    timeline = run(data, job, seen)
    assert Counter(seen.names) == dict.fromkeys(NAMES, 2)
    assert seen.digests == {name: blake2b((data / name).read_bytes(), digest_size=16).digest() for name in NAMES}
    assert timeline.bytes_read == 2 * sum((data / name).stat().st_size for name in NAMES)


def test_the_order_is_the_seeds_and_another_in_each_epoch() -> None:
    job = Job(batch=8, epochs=2)
    batches = list(job.batches(NAMES))
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 8, 2] * 2
    assert len(batches) == job.count(len(NAMES))
    first, second = list(chain(*batches[:7])), list(chain(*batches[7:]))
    assert sorted(first) == sorted(second) == NAMES
    assert first not in (NAMES, second)
    assert batches == list(Job(batch=8, epochs=2).batches(NAMES))
    assert batches != list(Job(batch=8, epochs=2, seed=1).batches(NAMES))


def test_the_times_add_up_and_a_long_sleep_is_not_work(data: Path) -> None:
    timeline = run(data, Job(batch=10, workers=2, compute_s=0.01), Seen())
    assert timeline.compute_s == pytest.approx(0.05)
    assert timeline.first_batch_s + timeline.stall_s + timeline.compute_s == pytest.approx(timeline.total_s)
    assert timeline.utilisation == pytest.approx(timeline.compute_s / timeline.total_s)
    assert 0 < timeline.utilisation < 1


def test_no_more_batches_are_on_their_way_than_the_bound(data: Path) -> None:
    job, seen, beyond = Job(batch=1, workers=2, compute_s=0), Seen(), []

    def on_batch(computed: int) -> None:
        beyond.append(len(seen.names) - computed)

    train(data, NAMES, job, check=seen, began_s=time.monotonic(), on_batch=on_batch)
    assert max(beyond) <= PREFETCH * job.workers
    assert len(beyond) == len(NAMES)


def test_a_wrong_file_ends_the_job_and_its_threads(data: Path) -> None:
    def check(name: str, size: int, digest: bytes) -> None:
        if name == NAMES[7]:
            raise BenchError("not what it should be")

    before = threading.active_count()
    with pytest.raises(BenchError, match="not what it should be"):
        train(data, NAMES, Job(batch=4, workers=4, compute_s=0), check=check, began_s=0)
    assert threading.active_count() == before


def test_a_file_that_cannot_be_read_is_told_in_a_line(data: Path) -> None:
    (data / NAMES[3]).unlink()
    with pytest.raises(BenchError, match=f"cannot read .*{NAMES[3]}: No such file"):
        run(data, Job(batch=4, workers=4, compute_s=0), Seen())


def test_no_files_are_no_batches() -> None:
    assert list(Job().batches([])) == []
    assert Job().count(0) == 0
