from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli import status as status_command  # noqa: F401 - imports the module
from lazyfs.cli.logs import OneLineFormatter
from lazyfs.cli.main import run
from lazyfs.cli.mountview import rows_of, show
from lazyfs.control import registry
from lazyfs.control.registry import Registration
from lazyfs.core.errors import ControlError

pytestmark = pytest.mark.usefixtures("home")

module = sys.modules["lazyfs.cli.status"]

ANSWER: dict[str, Any] = {
    "mountpoint": "/mnt/a",
    "bucket": "b",
    "prefix": "train/",
    "endpoint": "http://127.0.0.1:9000",
    "pid": 1,
    "uptime_s": 75.0,
    "read_only": False,
    "files": 1234,
    "bytes": 5 * 1024**3,
    "open_handles": 2,
    "import": {"state": "running", "objects": 1234, "requests": 2, "rate": 617.0, "error": None},
    "cache": {"memory": {"used": 1024**2, "limit": 1024**3}, "disk": None},
    "connections": {"in_flight": 3, "limit": 32},
    "stats": {"s3.requests.get": 3, "s3.bytes.read": 2048, "never": 0},
    "skipped_keys": 4,
    "endpoint_supports": {"range_206": True, "conditional_put": False},
    "untuned": ["max_background"],
    "policy": {"metadata_ttl_s": math.inf, "part_size": 8 * 1024**2, "no_delete": True},
}


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "call", lambda path, verb, **_: ANSWER)


def died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registration, "is_alive", property(lambda self: False))


def test_no_mounts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 0
    assert capsys.readouterr().out == "no mounts\n"
    assert run(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_place_that_is_no_mount(mountpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", str(mountpoint)]) == 1
    assert capsys.readouterr().err == f"lazyfs: {mountpoint} is not in a mount of lazyfs\n"


@pytest.mark.usefixtures("answering")
def test_json_is_standard_json(mountpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry.register(mountpoint, bucket="b")
    assert run(["status", "--json", str(mountpoint)]) == 0

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    (report,) = json.loads(capsys.readouterr().out, parse_constant=no_constant)
    assert report["state"] == "mounted"
    assert report["policy"]["metadata_ttl_s"] == "indefinite"
    assert report["stats"]["s3.requests.get"] == 3


@pytest.mark.usefixtures("answering")
def test_plain_lines_where_there_is_no_terminal(mountpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry.register(mountpoint, bucket="b")
    assert run(["status"]) == 0
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["/mnt/a"]
    assert dict(pair for pair in lines[1:] if len(pair) == 2) == {
        "bucket": "b/train on http://127.0.0.1:9000",
        "state": "mounted for 1 min 15 s, process 1",
        "access": "read and write",
        "policy": "metadata_ttl indefinite, part_size 8.0 MiB, no_delete yes",
        "lacking": "the server does without conditional_put",
        "untuned": "max_background; lazyfs doctor says what it costs",
        "known": "1,234 files, 5.0 GiB",
        "skipped": "4 keys that cannot be a path",
        "import": "running, 1,234 objects, 2 requests, 617 objects/s",
        "memory": "1.0 MiB of 1.0 GiB",
        "reading": "3 requests in flight, at most 32 now",
        "open": "2 files",
        "s3.requests.get": "3",
        "s3.bytes.read": "2.0 KiB",
    }


def test_a_dead_daemon_is_shown(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registration = registry.register(mountpoint, bucket="b")
    died(monkeypatch)
    assert run(["status"]) == 0
    shown = capsys.readouterr().out
    assert f"dead: process {registration.pid} is gone; run: lazyfs umount {mountpoint}" in shown
    assert run(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "dead"


def test_a_silent_daemon_is_shown(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(path: Path, verb: str, **_: Any) -> dict[str, Any]:
        raise ControlError("the daemon does not answer in time")

    registry.register(mountpoint, bucket="b")
    monkeypatch.setattr(module, "call", call)
    assert run(["status"]) == 0
    assert "the daemon does not answer in time" in capsys.readouterr().out


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    show([{**ANSWER, "state": "mounted"}, {**ANSWER, "state": "mounted", "mountpoint": "/mnt/[b]"}], terminal=True)
    shown = capsys.readouterr().out
    assert "/mnt/a" in shown
    assert "1,234 files, 5.0 GiB" in shown


@pytest.mark.parametrize(
    ("shared", "row"),
    [
        ({"where": "redis://n:1/0", "state": "on", "last_error": None}, "redis://n:1/0, in use"),
        ({"where": "s3://b", "state": "off", "last_error": "no"}, "s3://b, not in use; last error: no"),
        ({"where": "s3://b", "state": "reading", "last_error": "full"}, "s3://b, read only; last error: full"),
    ],
)
def test_the_shared_cache_is_shown(shared: dict[str, Any], row: str) -> None:
    assert dict(rows_of({**ANSWER, "state": "mounted", "cache": {"shared": shared}}))["shared"] == row


def test_a_read_only_mount_does_not_lack_what_writers_need() -> None:
    assert "lacking" not in dict(rows_of({**ANSWER, "state": "mounted", "read_only": True}))


def test_a_report_may_be_short() -> None:
    rows = dict(rows_of({"bucket": "b", "pid": 5, "state": "mounted", "import": {"state": "failed", "error": "no"}}))
    assert rows == {"bucket": "b", "state": "mounted, process 5", "import": "failed, no"}


@pytest.mark.parametrize(
    ("state", "row"),
    [
        ({"on": True, "gives_way": False}, "1.0 MiB of 1.0 GiB"),
        ({"on": True, "gives_way": True}, "1.0 MiB of 1.0 GiB; gives way, the file system is nearly full"),
        ({"on": False, "gives_way": True}, "1.0 MiB of 1.0 GiB; not in use, the log says why"),
    ],
)
def test_a_cache_that_gives_way_is_shown(state: dict[str, bool], row: str) -> None:
    cache = {"disk": {"used": 1024**2, "limit": 1024**3, **state}}
    assert dict(rows_of({**ANSWER, "state": "mounted", "cache": cache}))["disk"] == row


@pytest.mark.parametrize("terminal", [True, False])
def test_no_name_commands_the_terminal(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    lost = [["a\x1b[2J\nx", "p\x1b]0;title\x07\x9b"]]
    show([{**ANSWER, "state": "mounted", "mountpoint": "/m\x1b", "lost_and_found": lost}], terminal=terminal)
    out = capsys.readouterr().out
    assert all(char.isprintable() for char in out.replace("\n", ""))
    assert "\\x1b[2J" in out


def test_no_name_commands_who_reads_the_log() -> None:
    record = logging.LogRecord("n", logging.WARNING, "", 0, "key %s", ("ä\x1b[2J\r\n\x9b",), None)
    assert OneLineFormatter().format(record).endswith(r"key ä\x1b[2J\r\n\x9b")
