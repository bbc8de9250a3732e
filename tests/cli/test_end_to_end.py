"""The command line with bad input: one clear line, the right exit code, nothing left mounted, and soon."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.mounts import environment, lazyfs, nothing_left
from tests.servers import Server, free_port


class Shell:
    """A user with an empty mount point in a home of his own."""

    def __init__(self, server: Server, home: Path) -> None:
        self.server = server
        self.home = home
        self.env = environment(server, home)
        self.path = home / "mnt"
        self.path.mkdir()

    def mount(self, bucket: str, *options: str, path: str | Path | None = None, url: str | None = None) -> Any:
        """`lazyfs mount`, finished."""
        where = self.path if path is None else path
        return lazyfs("mount", bucket, where, "--endpoint-url", url or self.server.endpoint_url, *options, env=self.env)


@pytest.fixture
def shell(server: Server, tmp_path: Path) -> Iterator[Shell]:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("real mounts are tested as root with /dev/fuse")
    shell = Shell(server, tmp_path)
    with nothing_left(shell.path):
        yield shell
    assert not processes_of(shell.path), "a process was left behind"


def processes_of(path: Path) -> list[int]:
    """Processes that were started with `path` as an argument."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdecimal() else []
        except OSError:
            continue
        if os.fsencode(path) in words:
            found.append(int(process.name))
    return found


def refused(done: Any, code: int, *words: str) -> None:
    """It failed with this code and one line that says all of `words`."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("lazyfs: ")
    for word in words:
        assert word in done.stderr


def test_no_such_bucket(shell: Shell) -> None:
    refused(shell.mount("there-is-no-such-bucket"), 1, "there-is-no-such-bucket")


def test_wrong_keys(shell: Shell, bucket: str) -> None:
    if "signatures" in shell.server.limits:
        pytest.skip("moto accepts any credentials")
    shell.env |= replace(shell.server, secret_key="wrong").environment()
    refused(shell.mount(bucket), 1, bucket, "secret key")
    shell.env |= replace(shell.server, access_key="nobody").environment()
    refused(shell.mount(bucket), 1, bucket, "AWS_ACCESS_KEY_ID")


def test_no_keys(shell: Shell, bucket: str) -> None:
    del shell.env["AWS_ACCESS_KEY_ID"], shell.env["AWS_SECRET_ACCESS_KEY"]
    refused(shell.mount(bucket), 1, "credentials")


def test_an_endpoint_where_nobody_listens(shell: Shell, bucket: str) -> None:
    if shell.server.name != "moto":
        pytest.skip("no server is asked")
    url = f"http://127.0.0.1:{free_port()}"
    refused(shell.mount(bucket, url=url), 1, url.removeprefix("http://"))


def test_an_endpoint_that_is_no_url(shell: Shell, bucket: str) -> None:
    refused(shell.mount(bucket, url="localhost"), 2, "--endpoint-url")


def test_the_mount_point(shell: Shell, bucket: str) -> None:
    missing = shell.home / "missing"
    refused(shell.mount(bucket, path=missing), 1, f"{missing} does not exist", "mkdir -p")
    file = shell.home / "file"
    file.write_text("")
    refused(shell.mount(bucket, path=file), 1, f"{file} is not a directory")
    assert not missing.exists()


def test_a_mount_point_that_is_busy(shell: Shell, bucket: str) -> None:
    assert shell.mount(bucket).returncode == 0
    refused(shell.mount(bucket), 1, "mounted", f"lazyfs umount {shell.path}")
    assert lazyfs("umount", shell.path, env=shell.env).returncode == 0
    subprocess.run(["mount", "-t", "tmpfs", "none", shell.path], check=True)
    try:
        refused(shell.mount(bucket), 1, "mounted")
        refused(lazyfs("umount", shell.path, env=shell.env), 1, "tmpfs", "left alone")
    finally:
        subprocess.run(["umount", shell.path], check=True)


def test_bucket_and_mount_point_swapped(shell: Shell, bucket: str) -> None:
    done = lazyfs("mount", shell.path, bucket, "--endpoint-url", shell.server.endpoint_url, env=shell.env)
    refused(done, 2, "bucket")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--cache-size", "lots"),
        ("--cache-size", "-5GiB"),
        ("--memory", "0"),
        ("--memory", "12 parsecs"),
        ("--part-size", "1MiB"),
        ("--part-size", "6GiB"),
        ("--metadata-ttl", "soon"),
        ("--metadata-ttl", "-1"),
        ("--file-mode", "9"),
        ("--uid", "nobody-of-that-name"),
        ("--import", "never"),
        ("--log-level", "shout"),
        ("--no-such-option", "1"),
        ("-o", "no_such_word"),
    ],
)
def test_bad_values(shell: Shell, bucket: str, option: str, value: str) -> None:
    if shell.server.name != "moto":
        pytest.skip("no server is asked")
    refused(shell.mount(bucket, option, value), 2, option.strip("-") if option != "-o" else "no")


def test_a_bad_file_of_options(shell: Shell, bucket: str) -> None:
    if shell.server.name != "moto":
        pytest.skip("no server is asked")
    file = shell.home / "config.toml"
    for text, word in [
        ("cash-size = '1GiB'", "cash-size"),
        ("cache-size = ", "config.toml"),
        ("memory = []", "memory"),
    ]:
        file.write_text(text + "\n")
        refused(shell.mount(bucket, "--config", str(file)), 2, word)
    refused(shell.mount(bucket, "--config", str(shell.home / "nothing.toml")), 2, "nothing.toml")


def test_files_of_the_mount_inside_the_mount(shell: Shell, bucket: str) -> None:
    refused(shell.mount(bucket, "--cache-dir", str(shell.path / "cache")), 1, "lies inside the mount point")
    refused(shell.mount(bucket, "--log-file", str(shell.path / "log")), 1, "lies inside the mount point")
    assert os.listdir(shell.path) == []


def test_a_failed_mount_can_be_repeated(shell: Shell, bucket: str) -> None:
    refused(shell.mount("there-is-no-such-bucket"), 1)
    done = shell.mount(bucket)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (shell.path / "f").write_bytes(b"x")
    assert lazyfs("umount", shell.path, env=shell.env).returncode == 0


def test_doctor(shell: Shell, bucket: str) -> None:
    done = lazyfs("doctor", bucket, "--endpoint-url", shell.server.endpoint_url, "--try-writes", env=shell.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"bucket {bucket} can be listed" in done.stdout
    assert "the server honours ranges (206)" in done.stdout
    honours = "does not honour" if "conditional-put" in shell.server.limits else "honours"
    assert f"the server {honours} conditional writes" in done.stdout
    wrong = lazyfs("doctor", "no-such-bucket-here", "--endpoint-url", shell.server.endpoint_url, env=shell.env)
    assert wrong.returncode == 1
    assert "Traceback" not in wrong.stdout + wrong.stderr
