from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lazyfs.cli import checks
from lazyfs.cli.checks import Level, check_cache, check_direct, check_memory, file_system_of
from lazyfs.cli.endpoint import judge
from lazyfs.cli.main import run
from lazyfs.config import CacheConfig
from lazyfs.core.types import Capabilities
from tests.servers import Server

GIB = 1024**3


def cache(directory: Path | None, *, size: int = GIB, memory: int = GIB // 8) -> CacheConfig:
    return CacheConfig(directory=directory, size=size, memory=memory)


def test_this_machine(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    levels = [match[1] for line in lines if (match := re.match(r"(ok|warn|fail) +\S", line))]
    assert len(levels) == 9
    assert code == (1 if "fail" in levels else 0)
    assert not (home / "cache").exists(), "it only looks"


def test_the_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_cache(cache(None)).level is Level.WARN
    monkeypatch.setattr(checks, "file_system_of", lambda path: "ext4")
    assert check_cache(cache(tmp_path / "a" / "b")).level is Level.OK
    assert check_cache(cache(tmp_path, size=1024**5)).advice.startswith("the disk will be full")
    (tmp_path / "file").write_text("")
    assert check_cache(cache(tmp_path / "file")).level is Level.FAIL
    assert check_cache(cache(tmp_path / "file" / "x")).level is Level.FAIL
    for kind in ("tmpfs", "nfs4", "fuse.sshfs"):
        monkeypatch.setattr(checks, "file_system_of", lambda path, kind=kind: kind)
        assert check_cache(cache(tmp_path)).level is Level.WARN


def test_the_memory() -> None:
    assert check_memory(cache(None)).level is Level.OK
    assert check_memory(cache(None, memory=1024**5)).level is Level.WARN


def test_the_kernel_cannot_be_tuned_by_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [finding.level for finding in checks.check_tuning()] == [Level.WARN, Level.WARN]


def test_no_fuse_fails(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lazyfs.cli.preflight.FUSE_DEVICE", home / "fuse")
    assert run(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "modprobe fuse" in captured.out
    assert captured.err.endswith("failed\n")


def test_no_fusermount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert checks.check_fusermount().level is Level.WARN
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert checks.check_fusermount().level is Level.FAIL


def test_the_direct_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "4.19.0")
    found = check_direct()
    assert found.level is Level.WARN
    assert found.text == "no --session direct: Linux 4.19.0 is older than 5.4"


def test_the_file_system_of_a_path() -> None:
    assert file_system_of(Path("/proc/self")) == "proc"


def test_what_the_server_does_not_do_is_a_warning() -> None:
    poor = Capabilities(range_206=False, if_match_get=False, conditional_put=False)
    assert [finding.level for finding in judge(poor, read_tried=True, write_tried=True)] == [Level.WARN] * 3
    rich = judge(Capabilities(), read_tried=True, write_tried=True)
    assert [finding.level for finding in rich] == [Level.OK] * 3
    untried = judge(Capabilities(), read_tried=False, write_tried=False)
    assert [finding.level for finding in untried] == [Level.WARN, Level.OK]


@pytest.mark.usefixtures("home", "aws_environment")
def test_a_bucket_on_a_server(server: Server, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    server.client().put_object(Bucket=bucket, Key="a/b", Body=b"xyz")
    assert run(["doctor", f"{bucket}/a", "--endpoint-url", server.endpoint_url, "--try-writes"]) == 0
    shown = capsys.readouterr().out
    assert f"ok    bucket {bucket} can be listed" in shown
    assert "ok    the server honours ranges (206)" in shown
    assert re.search(r"(ok    the server honours|warn  the server does not honour) conditional writes", shown)
    assert [entry["Key"] for entry in server.client().list_objects_v2(Bucket=bucket)["Contents"]] == ["a/b"]


@pytest.mark.usefixtures("home", "aws_environment")
def test_no_such_bucket(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "no-such-bucket-here", "--endpoint-url", server.endpoint_url]) == 1
    captured = capsys.readouterr()
    assert "fail  bucket no-such-bucket-here: " in captured.out
    assert captured.err == "lazyfs: 1 of the checks failed\n"


@pytest.mark.usefixtures("home", "aws_environment")
def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert run(["doctor", "bucket", "--endpoint-url", "http://127.0.0.1:9"]) == 1
    assert "fail  bucket bucket: " in capsys.readouterr().out
