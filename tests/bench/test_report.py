"""The bench's own arithmetic: what a table says is what was measured, and a loss is named."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bench.dataset import Dataset, Scale
from bench.peers import looking, reading
from bench.report import Cell, Report
from bench.workloads import Limit, Sample, WrongBytesError

SCALE = Scale(large=1 << 21, small=40, names=50)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.make(tmp_path_factory.mktemp("truth"), SCALE)


def test_every_workload_reads_what_is_there(truth: Dataset) -> None:
    for work in [*looking(truth), *reading(truth)]:
        sample = work.run(truth.root, Limit(10))
        sample.check()
        assert sample.ops > 0, work.name


def test_a_workload_replays_no_more_than_it_did_before(truth: Dataset) -> None:
    work = next(work for work in reading(truth) if work.name == "random 4 KiB")
    assert work.run(truth.root, Limit(10, ops=7)).ops == 7


def test_a_changed_byte_is_found_by_every_workload_that_reads(truth: Dataset, tmp_path: Path) -> None:
    for work in reading(truth):
        for path in work.paths:
            broken = tmp_path / path
            broken.parent.mkdir(parents=True, exist_ok=True)
            body = bytearray(truth.truth(path))
            for at in range(len(body) // 64, len(body) - 16_384, 4096):  # beyond headers, before footers
                body[at] ^= 1
            broken.write_bytes(body)
        with pytest.raises((WrongBytesError, OSError, ValueError)):  # a format may notice it by itself
            work.run(tmp_path, Limit(10)).check()


def _report(*cells: Cell) -> Report:
    return Report(argparse.Namespace(scale=1.0, rounds=1), SCALE, cells=list(cells))


def _cell(arm: str, rate: float, error: str = "") -> Cell:
    cell = Cell(arm, "direct", "cold", "sequential", "MB/s", error=error)
    cell.take(Sample(1, int(rate * 1e6), 1.0))
    return cell


def test_a_loss_and_a_failure_of_ours_are_named() -> None:
    assert "sequential: 0.50 × s3fs" in _report(_cell("lazyfs", 10), _cell("s3fs", 20)).markdown()
    assert "nowhere in this run" in _report(_cell("lazyfs", 20), _cell("s3fs", 10)).markdown()
    failed = _report(_cell("lazyfs", 20, "WRONG BYTES: x"), _cell("s3fs", 10))
    assert "fails (WRONG BYTES: x)" in failed.markdown()
    assert failed.wrong


def test_the_median_round_is_told_and_all_rounds_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = _report(*(_cell("lazyfs", rate) for rate in (10, 1000, 20)))
    report.write(tmp_path)
    assert "| sequential | MB/s | 20 |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "results.json").read_text())["cells"]) == 3
