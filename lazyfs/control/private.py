"""Directories that nobody else may look into or put things into."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lazyfs.core.errors import StartupError


def make_private_directory(path: Path) -> None:
    """`path` is a directory of ours with mode 0700; its parents are created as they come.

    Raises StartupError if it cannot be, or if somebody else owns it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
        if status.st_uid != os.geteuid():
            raise StartupError(f"{path} belongs to user {status.st_uid}, not to you")
        if stat.S_IMODE(status.st_mode) != 0o700:
            path.chmod(0o700)
    except FileExistsError as error:
        raise StartupError(f"{path} is not a directory") from error
    except OSError as error:
        raise StartupError(f"cannot use the directory {path}: {error.strerror}") from error
