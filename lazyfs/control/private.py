"""Directories that nobody else may look into or put things into."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lazyfs.core.errors import StartupError


def make_private_directory(path: Path) -> None:
    """`path` is a directory of ours with mode 0700; its parents are created as they come.

    Raises StartupError if it cannot be, if somebody else owns it or has put a link there, or if others could have put
    things into it until now.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_link(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # what is checked is what is changed, whatever becomes of the name
            _make_private(descriptor, path)
        finally:
            os.close(descriptor)
    except FileExistsError as error:
        raise StartupError(f"{path} is not a directory") from error
    except OSError as error:
        raise StartupError(f"cannot use the directory {path}: {error.strerror}") from error


def _check_link(path: Path) -> None:
    """A link is followed if we, or root, have made it: /tmp is full of other people's."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
        raise StartupError(f"{path} is a symbolic link of user {status.st_uid}, not yours")


def _make_private(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise StartupError(f"{path} belongs to user {status.st_uid}, not to you")
    if stat.S_IMODE(status.st_mode) == 0o700:
        return
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and os.listdir(descriptor):
        raise StartupError(
            f"others may write to {path}, and what is in it may be theirs: empty it, or trust it by chmod 700"
        )
    os.fchmod(descriptor, 0o700)
