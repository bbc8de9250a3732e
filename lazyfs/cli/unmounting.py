"""Detaching a mount: the system call as root, fusermount3 as anybody else."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from pathlib import Path

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8


def unmount(path: Path, *, lazy: bool) -> None:
    """Detach what is mounted on `path`; `lazy` does so even while it is in use.

    Raises OSError, with EBUSY for a mount that is in use.
    """
    if os.geteuid() == 0:
        _umount2(path, _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
    else:
        _fusermount(path, lazy=lazy)


def _umount2(path: Path, flags: int) -> None:
    """umount2(2), which Python's os does not have."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _fusermount(path: Path, *, lazy: bool) -> None:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise OSError(errno.ENOENT, "fusermount3 is not installed")
    command = [program, "-u", *(["-z"] if lazy else []), "--", str(path)]
    environ = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed program
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition(": ")[2] or f"{program} ended with code {done.returncode}"
        raise OSError(errno.EBUSY if reason.lower().endswith("busy") else errno.EIO, reason)
