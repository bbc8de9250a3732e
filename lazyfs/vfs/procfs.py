"""What /proc knows of other processes' files."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Program:
    """A process. `started` is in the kernel's ticks since boot, 0 if the process is gone or we may not see it, as in
    another container; number 0 then, or that of one of its threads."""

    pid: int
    name: str = ""
    started: int = 0

    @property
    def identity(self) -> tuple[int, int]:
        """No other process has the same."""
        return self.pid, self.started


def program_of(thread: int) -> Program:
    """Whose thread it is: the kernel tells a file system the thread that opens a file. Never raises.

    Source: proc_pid_status(5), proc_pid_stat(5); the second field of stat, the name, may hold spaces and parentheses.
    """
    try:
        with open(f"/proc/{thread}/status", "rb") as status:
            pid = next(int(line[5:]) for line in status if line.startswith(b"Tgid:"))
        with open(f"/proc/{pid}/stat", "rb") as stat:
            before, _, fields = stat.read().rpartition(b")")
        return Program(pid, before.partition(b"(")[2].decode(errors="replace"), int(fields.split()[19]))
    except (OSError, StopIteration, ValueError, IndexError):
        return Program(max(0, thread))


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
