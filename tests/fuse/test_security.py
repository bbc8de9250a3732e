"""What a real mount gives away, and what others can do to it: names, secrets, files and the kernel's rules."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import new_bucket_name
from tests.fuse.mounts import ROOT, Mount, mounted, witness
from tests.fuse.trees import put
from tests.servers import Server

EVIL = "e\x1b[2J\x07\nv\x9b\x7f"
"""Clears a terminal, rings, breaks the line, and commands terminals that know C1."""
COMMANDS = [
    ("status", "-r"),
    ("status", "{path}"),
    ("find",),
    ("preload", "--wait"),
    ("preload", "{path}-not-there"),
    ("task", "ls"),
    ("sync",),
    ("flush", "{path}"),
    ("flush", "{path}-not-there"),
    ("release", "--dry-run"),
    ("top", "--once", "--interval", "100ms"),
]


@pytest.fixture
def server(gateway: Server) -> Server:
    """One that takes keys with control characters."""
    return gateway


def on_a_terminal(m: Mount, *arguments: str) -> str:
    """All that the command `lazyfs ARGUMENTS` writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lazyfs", *arguments],
        env={**m.env, "TERM": "dumb"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # EIO: nobody has it open any more
        pass
    os.close(ours)
    process.wait(30)
    return written.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_name_in_the_bucket_commands_the_terminal(named: Mount, arguments: tuple[str, ...]) -> None:
    words = [word.format(path=named.path / EVIL / "f") for word in arguments]
    if "{path}" not in "".join(arguments) and arguments[0] not in ("task", "top"):
        words.append(str(named.path))
    written = on_a_terminal(named, *words).replace("\r\n", "\n")
    assert written.strip()
    assert all(char.isprintable() or char == "\n" for char in written), repr(written)
    if arguments[0] not in ("task", "sync", "top"):
        assert r"e\x1b[2J" in written or arguments[0] in ("preload", "release")


def test_find_gives_programs_the_very_bytes(named: Mount) -> None:
    want = subprocess.run(["find", named.path, "-name", "f"], capture_output=True, check=True).stdout
    command = [sys.executable, "-m", "lazyfs", "find", str(named.path), "--name", "f"]
    found = subprocess.run(command, env=named.env, cwd=ROOT, capture_output=True, check=True).stdout
    assert EVIL.encode() in want
    assert found == want


@pytest.fixture(scope="module")
def named(gateway: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount with a name of the worst kind, for all commands."""
    bucket = gateway.make_bucket(new_bucket_name())
    put(witness(gateway), bucket, f"{EVIL}/f", b"x" * 1000)
    with mounted(bucket, gateway, directory=tmp_path_factory.mktemp("named"), time_limit_s=180) as m:
        m.wait_imported()
        yield m
    gateway.drop_bucket(bucket)
