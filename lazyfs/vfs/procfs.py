"""What /proc knows of other processes' files."""

from __future__ import annotations

import contextlib
import os


def still_open(pid: int, ino: int, name: str) -> bool:
    """Whether process `pid` has inode `ino` called `name` open for writing, as far as we may see.

    A descriptor that is being closed is no longer seen. False when in doubt: the caller then finishes the file, as
    close() should. `fdinfo` has told `ino` since Linux 5.14. Source: proc_pid_fdinfo(5).
    """
    if pid <= 0:
        return False
    with contextlib.suppress(OSError):
        return any(_is_it(pid, fd, ino, name) for fd in os.listdir(f"/proc/{pid}/fdinfo"))
    return False


def _is_it(pid: int, fd: str, ino: int, name: str) -> bool:
    """Whether this descriptor is that file; False if it was closed meanwhile."""
    try:
        # First what costs least: a program may have thousands open, and the mount waits meanwhile.
        if os.path.basename(os.readlink(f"/proc/{pid}/fd/{fd}")) not in (name, f"{name} (deleted)"):
            return False
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            facts = dict(line.split(":", 1) for line in file if ":" in line)
        return int(facts.get("ino", "0")) == ino and bool(int(facts.get("flags", "0"), 8) & os.O_ACCMODE)
    except (OSError, ValueError):
        return False
