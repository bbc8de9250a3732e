"""`lazyfs top`: what a frame says, and where it refuses to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli import status as module
from lazyfs.cli import top
from lazyfs.cli.frames import MAX_PROGRAMS, rows, sparkline, title
from lazyfs.cli.main import run
from lazyfs.control import registry
from lazyfs.core.histogram import Histogram
from tests.test_metrics import STATUS as QUIET

BEFORE: dict[str, Any] = {**QUIET, "state": "mounted", "pid": 1, "mountpoint": "/mnt/a", "uptime_s": 10.0, "stats": {}}
AFTER: dict[str, Any] = {
    **BEFORE,
    "uptime_s": 12.0,
    "import": {**QUIET["import"], "state": "running", "rate": 1234.4},
    "stats": {
        "read.bytes.memory": 3 * 1024**2,
        "read.bytes.s3": 1024**2,
        "read.stall_ns": 3_000_000_000,
        "read.stalls": 30,
        "read.waiting": 2,
        "s3.requests.get": 20,
        "s3.requests.list": 4,
        "s3.bytes.read": 2 * 1024**2,
        "s3.bytes.written": 200,
    },
}


def told(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, str]:
    return {row.name.strip(): " ".join(row.value.split()) for row in rows(before, after)}


def test_a_frame_is_what_happened_between_two_looks() -> None:
    found = told(BEFORE, AFTER)
    assert found["read"] == "2.0 MiB/s 4.0 MiB in all"
    assert found["memory"] == "███████████████ 1.5 MiB/s 3.0 MiB"
    assert found["s3"] == "█████ 512.0 KiB/s 1.0 MiB"
    assert "disk" not in found
    assert found["waiting"] == "1.5 readers on average, 100 ms each; 2 now"
    assert found["requests"] == "12/s: get 10/s, list 2/s"
    assert found["S3"] == "1.0 MiB/s down, 100 B/s up; 1 range GETs of at most 32"
    assert found["to upload"] == "6 changes, 600 B, the oldest for 1 min 2 s; 6.0 s at this rate; 2 failed"
    assert found["import"] == "running, 7 objects, 1,234/s"
    assert found["disk tier"] == "3 B of 4 B (75%); not in use"
    alarms = {row.name for row in rows(BEFORE, AFTER) if row.alarm}
    assert alarms == {"waiting", "to upload", "disk tier", "shared tier", "lost races", "preload"}


def program(pid: int, read: int, written: int = 0, **more: Any) -> dict[str, Any]:
    one = {"pid": pid, "started": pid, "name": "python", "opens": 1, "read_bytes": read, "written_bytes": written}
    return {**one, "age_s": 60.0, "waited_s": 0.5, "open_files": 0, "files": [], **more}


def test_who_reads_and_writes_what_busiest_first() -> None:
    file = {"path": "train/a\n", "writable": False, "read_bytes": 5, "written_bytes": 0}
    held = {"open_files": 3, "files": [file, {**file, "path": "b", "writable": True}]}
    before = {**BEFORE, "programs": [program(1, 0), program(2, 2 * 1024**2), program(3, 7)]}
    new = program(9, 600, name="", age_s=1.0, waited_s=2.0)
    after = {**AFTER, "programs": [program(1, 1024), program(2, 4 * 1024**2, 2048, **held), program(3, 7), new]}
    found = [" ".join(row.value.split()) for row in rows(before, after) if row.name in ("programs", "")]
    assert found == [
        "python (2) 1.0 MiB/s, 4.0 MiB read; 1.0 KiB/s, 2.0 KiB written train/a\\n, b (writing), and 1 more",
        "python (1) 512 B/s, 1.0 KiB read",
        "unknown (9) 300 B/s, 600 B read; 1.0 readers waiting",
    ]
    forgotten = {**AFTER, "programs": [program(4, 10**9, open_files=1)]}  # it did nothing when we looked before
    assert told(before, forgotten)["programs"] == "python (4) 0 B/s, 953.7 MiB read and 1 more"
    many = {**AFTER, "programs": [program(pid, 9, open_files=1) for pid in range(1, 50)]}
    assert sum(row.name in ("programs", "") for row in rows(None, many)) == MAX_PROGRAMS


def test_how_long_readers_wait_in_all_and_now() -> None:
    earlier, later = Histogram(), Histogram()
    for histogram, waits_ms in ((earlier, [1000] * 5), (later, [1000] * 5 + [10] * 98 + [200] * 2)):
        for wait_ms in waits_ms:
            histogram.add(wait_ms * 10**6)
    after = {**AFTER, "waits": {"s3": later.told()}}
    now = told({**BEFORE, "waits": {"s3": earlier.told()}}, after)["for s3"]
    whole = "105: half within 10 ms, 99 of 100 within 1.0 s"
    assert now == f"{whole}; now half within 10 ms, 99 of 100 within 213 ms"
    assert told(None, after)["for s3"] == whole
    assert told({**BEFORE, "pid": 2, "waits": {"s3": earlier.told()}}, after)["for s3"] == whole


def test_there_are_no_rates_across_two_daemons_or_from_one_look() -> None:
    for before in (None, {**BEFORE, "pid": 2}, {**AFTER}):
        found = told(before, AFTER)
        assert found["read"] == "0 B/s 4.0 MiB in all"
        assert found["requests"] == "0/s"
        assert found["waiting"] == "0.0 readers on average; 2 now"


def test_a_mount_in_trouble_says_so() -> None:
    dead = {"mountpoint": "/mnt/a", "bucket": "b", "pid": 7, "state": "dead"}
    assert told(None, dead) == {"state": "dead: process 7 is gone; run: lazyfs umount /mnt/a"}
    assert told(BEFORE, {**dead, "state": "silent", "error": "no word"}) == {"state": "not answering: no word"}
    assert title(dead) == "/mnt/a  b"
    throttled = {**AFTER, "stats": {"s3.throttles": 4, "s3.retries": 6}}
    assert told(BEFORE, throttled)["trouble"] == "3.0/s sent again, 2.0/s refused as too many"
    failed = {**AFTER, "import": {**QUIET["import"], "error": "refused"}}
    assert told(BEFORE, failed)["import"] == "failed, 7 objects: refused"


def test_the_line_of_throughput() -> None:
    assert sparkline([]) == sparkline([0, 0]) == ""
    assert sparkline([0, 50, 100]) == "▁▅█"


def test_once_prints_a_frame_for_scripts(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.register(mountpoint, bucket="b")
    answers = [BEFORE, AFTER]
    monkeypatch.setattr(module, "call", lambda *_, **__: {**answers.pop(0), "mountpoint": str(mountpoint)})
    monkeypatch.setattr(top, "call", lambda *_, **__: {"programs": [program(1, 0)]})
    assert run(["top", "--once", "--interval", "100ms", str(mountpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{mountpoint}  b/p, 12.0 s"
    assert "  import       running, 7 objects, 1,234/s" in lines
    assert any(line.startswith("  waiting ") and line.endswith("(!)") for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_where_it_does_not_draw(mountpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top"]) == 1
    assert capsys.readouterr().err == "lazyfs: no mounts\n"
    assert run(["top", str(mountpoint)]) == 1
    assert "is not a mount of lazyfs" in capsys.readouterr().err
    assert run(["top", "--interval", "1ms"]) == 2
    registry.register(mountpoint, bucket="b")
    assert run(["top"]) == 2
    assert "needs a terminal" in capsys.readouterr().err
