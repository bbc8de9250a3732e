"""`lazyfs report`: what a person reads, and where it refuses. Real runs are in tests/fuse/test_report.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli import report as module
from lazyfs.cli.main import run
from lazyfs.cli.runview import rows, title
from lazyfs.control import registry
from lazyfs.control.registry import Registration
from lazyfs.core.errors import ControlError
from lazyfs.core.histogram import Histogram

MIB = 1024**2


def waited(*milliseconds: int) -> dict[str, Any]:
    made = Histogram()
    for each in milliseconds:
        made.add(each * 10**6)
    return made.told()


REPORT: dict[str, Any] = {
    "mountpoint": "/mnt/$a$ \N{SNOWMAN}",
    "bucket": "b",
    "prefix": "p/",
    "since": "mount",
    "elapsed_s": 100.0,
    "listing": {"state": "done", "objects": 1200, "elapsed_s": 1.5, "error": ""},
    "beginning": {
        "first_open_s": 10.0,
        "first_byte_s": 10.04,
        "first_batch_s": 11.0,
        "batch_files": 32,
        "batch_bytes": 8 * MIB,
    },
    "waits": {
        "reads": 4,
        "readers_s": 20.0,
        "anybody_s": 5.0,
        "all": waited(10, 10, 10, 500),
        "tiers": {"disk": waited(10, 10), "s3": waited(10, 500)},
    },
    "passes": [
        {"pass": 0, "opens": 0, "file_bytes": 0, "bytes": {"s3": 5}},
        {"pass": 1, "opens": 1000, "file_bytes": 10 * MIB, "bytes": {"s3": 8 * MIB, "memory": 2 * MIB}},
        {"pass": 64, "opens": 900, "file_bytes": 9 * MIB, "bytes": {"disk": 4 * MIB}},
    ],
    "s3": {
        "requests": {"get": 30, "list": 2},
        "read_bytes": 8 * MIB,
        "busy_s": 4.0,
        "mean_bytes_per_s": 2.0 * MIB,
        "best_bytes_per_s": 5.0 * MIB,
    },
    "file_mode": {
        "bytes_per_s": 5.0 * MIB,
        "opened_bytes": 10 * MIB,
        "opened_s": 2.0,
        "listed_bytes": 50 * MIB,
        "listed_s": 10.0,
    },
    "files": {"listed": 1200, "bytes": 50 * MIB, "opened": 1000, "never_opened": 200},
    "directories": {
        "count": 3,
        "hottest": [
            {"path": "train", "files": 10, "opens": 20, "bytes": 6 * MIB, "is_sum": True},
            {"path": "", "files": 1, "opens": 1, "bytes": 2 * MIB, "is_sum": False},
        ],
        "unread": {
            "count": 1,
            "files": 7,
            "bytes": 3 * MIB,
            "largest": [{"path": "val\n", "files": 7, "bytes": 3 * MIB}],
        },
    },
}
NOTHING: dict[str, Any] = {
    **REPORT,
    "since": "reset",
    "beginning": {**REPORT["beginning"], "first_open_s": None, "first_byte_s": None, "first_batch_s": None},
    "waits": {"reads": 0, "readers_s": 0.0, "anybody_s": 0.0, "all": waited(), "tiers": {}},
    "passes": [],
    "s3": {"requests": {}, "read_bytes": 0, "busy_s": 0.0, "mean_bytes_per_s": 0.0, "best_bytes_per_s": 0.0},
    "file_mode": {**REPORT["file_mode"], "bytes_per_s": 0.0, "opened_bytes": 0, "opened_s": None, "listed_s": None},
    "directories": {"count": 1, "hottest": [], "unread": None},
}


def test_what_a_report_says() -> None:
    assert title(REPORT) == "/mnt/$a$ \N{SNOWMAN}  b/p, 1 min 40 s since the mount began"
    downloads = "10.0 MiB that were opened in 2.0 s, all 50.0 MiB in 10.0 s"
    assert [(name, " ".join(value.split())) for name, value in rows(REPORT)] == [
        ("listing", "done, 1,200 objects in 1.5 s"),
        ("first open", "10.0 s after the mount began"),
        ("first byte", "40 ms after that"),
        ("first batch", "1.0 s after that: 32 files read and closed, or 8.0 MiB"),
        ("stalled", "5.0 s with a reader waiting, 5% of the time; 20.0 s of all readers together"),
        ("waits", "4 reads: half within 10 ms, 99 of 100 within 524 ms"),
        ("  s3", "2 reads: half within 10 ms, 99 of 100 within 524 ms"),
        ("  disk", "2 reads: half within 10 ms, 99 of 100 within 10 ms"),
        ("other opens", "5 B read (5 B s3)"),
        ("pass 1", "1,000 files of 10.0 MiB; 10.0 MiB read (2.0 MiB memory, 8.0 MiB s3)"),
        (
            "pass 64 and later",
            "900 files of 9.0 MiB; 4.0 MiB read (4.0 MiB disk); 5.0 MiB from the page cache, or not at all",
        ),
        ("S3", "8.0 MiB fetched; 32 requests of all kinds; 2.0 MiB/s while fetching, 5.0 MiB/s in the best second"),
        ("File mode", f"would have downloaded first, at the best second's 5.0 MiB/s: {downloads}"),
        ("never opened", "200 of 1,200 files"),
        ("hot", "6.0 MiB 20 opens of 10 files train and below"),
        ("", "2.0 MiB 1 opens of 1 files ."),
        ("cold", "1 directories, 7 files, 3.0 MiB of which nothing was opened; the largest:"),
        ("", "3.0 MiB 7 files val"),
    ]


def test_a_report_of_nothing() -> None:
    found = dict(rows(NOTHING))
    assert found["first open"] == "not yet"
    assert found["S3"] == "0 B fetched; 0 requests of all kinds"
    assert not {"first byte", "waits", "File mode", "hot", "cold"} & set(found)
    opened = {**NOTHING, "beginning": {**NOTHING["beginning"], "first_open_s": 0.0}}
    assert dict(rows(opened))["first byte"] == "not yet"
    assert dict(rows(opened))["first open"] == "0 ms after the reset"


def test_it_is_printed_in_lines_and_the_mount_is_asked_to_begin_anew(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.register(mountpoint, bucket="b")
    asked: list[dict[str, Any]] = []

    def call(_socket: Path, verb: str, **arguments: Any) -> dict[str, Any]:
        asked.append({"verb": verb, **arguments})
        return {name: value for name, value in REPORT.items() if name != "mountpoint"}

    monkeypatch.setattr(module, "call", call)
    assert run(["report"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(rows(REPORT))) + 1
    assert "  first open         10.0 s after the mount began" in lines
    assert lines[-1].endswith("val\\n")
    assert run(["report", "--reset", "--json", str(mountpoint)]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["mountpoint"], one["bucket"], one["passes"]) == (str(mountpoint), "b", REPORT["passes"])
    assert [(one["verb"], one["reset"]) for one in asked] == [("report", False), ("report", True)]


def test_a_mount_that_does_not_answer_is_told_and_the_others_are_shown(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report"]) == 1
    assert capsys.readouterr().err == "lazyfs: no mounts\n"
    assert run(["report", str(mountpoint)]) == 1
    assert "is not a mount of lazyfs" in capsys.readouterr().err
    registry.register(mountpoint, bucket="b")
    other = mountpoint.parent / "other"
    other.mkdir()
    registry.register(other, bucket="c")

    def call(socket: Path, _verb: str, **_: Any) -> dict[str, Any]:
        if socket == registry.socket_path(other):
            raise ControlError("this daemon does not know 'report'")
        return {**REPORT, "mountpoint": str(mountpoint)}

    monkeypatch.setattr(module, "call", call)
    assert run(["report", "--json"]) == 1
    said = capsys.readouterr()
    assert [one["bucket"] for one in json.loads(said.out)] == ["b"]
    assert said.err == f"lazyfs: {other}: this daemon does not know 'report'\n"
    assert run(["report", "--png", "x.png"]) == 2
    assert "--png draws one mount" in capsys.readouterr().err
    monkeypatch.setattr(Registration, "is_alive", property(lambda _: False))
    assert run(["report", str(mountpoint)]) == 1
    assert "its daemon has died; run: lazyfs umount" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="only lazyfs[bench] has matplotlib")
def test_it_is_drawn_whatever_names_there_are(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.register(mountpoint, bucket="b $x^$")
    answers = [REPORT, NOTHING]
    monkeypatch.setattr(module, "call", lambda *_, **__: answers[0])
    png = mountpoint.parent / "run.png"
    for _ in range(2):
        assert run(["report", str(mountpoint), "--png", str(png)]) == 0
        assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        png.unlink()
        answers.reverse()
    assert run(["report", str(mountpoint), "--png", str(mountpoint.parent / "no" / "run.png")]) == 1
    assert "cannot write" in capsys.readouterr().err
