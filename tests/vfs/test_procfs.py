"""Whether somebody still has a file open for writing, asked of /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

import pytest

from lazyfs.vfs import procfs
from lazyfs.vfs.procfs import still_open

PID = os.getpid()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a name\nwith a line"


def ask(path: Path, ino: int | None = None) -> bool:
    return still_open(PID, os.stat(path).st_ino if ino is None else ino, path.name)


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b"])
def test_open_for_writing(path: Path, mode: str) -> None:
    path.write_bytes(b"x")
    with path.open(mode):
        assert ask(path)
    assert not ask(path)


def test_open_for_reading_does_not_count(path: Path) -> None:
    path.write_bytes(b"x")
    with path.open("rb"):
        assert not ask(path)


def test_a_duplicate_counts_until_it_is_closed(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    again = os.dup(file)
    os.close(file)
    assert ask(path)
    os.close(again)
    assert not ask(path)


def test_another_name_or_inode_is_another_file(path: Path) -> None:
    with path.open("wb"):
        assert not still_open(PID, os.stat(path).st_ino, "other")
        assert not ask(path, ino=os.stat(path).st_ino + 1)


@pytest.mark.parametrize("name", ["file", "file (deleted)"])
def test_a_deleted_file_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        ino = os.fstat(file.fileno()).st_ino
        assert still_open(PID, ino, name)
        path.unlink()
        assert still_open(PID, ino, name)


def test_a_descriptor_that_is_closed_meanwhile_hides_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of many threads open and close all the time."""
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda where: ["999999", *listdir(where)])
    with path.open("wb"):
        assert ask(path)


def test_what_has_another_name_is_not_looked_into(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may have thousands open, and the mount waits meanwhile."""
    read: list[str] = []

    def spying(name: str) -> IO[str]:
        read.append(name)
        return open(name)

    monkeypatch.setattr(procfs, "open", spying, raising=False)
    with path.open("wb"), contextlib.ExitStack() as stack:
        for number in range(50):
            stack.enter_context(path.with_name(str(number)).open("wb"))
        assert ask(path)
    assert len(read) == 1


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1])
def test_no_such_process(pid: int) -> None:
    assert not still_open(pid, 1, "x")
