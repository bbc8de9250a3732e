"""What the kernel says of mounts: /proc/self/mountinfo, and the errno of a mount whose daemon died.

Nothing here asks a mounted file system itself, except `is_dead`.
Source: https://docs.kernel.org/filesystems/proc.html (section 3.5)
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

FS_TYPE = "fuse.lazyfs"


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of the kernel's table."""

    mountpoint: Path
    fs_type: str
    source: str


def parse_mountinfo(text: str) -> list[MountEntry]:
    """The mounts of /proc/self/mountinfo, in the order of mounting; lines that are none are skipped."""
    entries = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if separator and len(fields) > 4 and len(tail) > 1:
            entries.append(MountEntry(Path(_unescape(fields[4])), tail[0], _unescape(tail[1])))
    return entries


def find_mount(mountpoint: Path) -> MountEntry | None:
    """The topmost mount on exactly this path."""
    text = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
    return next((entry for entry in reversed(parse_mountinfo(text)) if entry.mountpoint == mountpoint), None)


def resolve_mountpoint(text: str) -> Path:
    """The path as the kernel's table has it. Does not ask a mounted file system, which may hang."""
    path = Path(text).expanduser()
    candidate = Path(os.path.realpath(path.parent)) / path.name
    return candidate if find_mount(candidate) else Path(os.path.realpath(path))


def is_dead(mountpoint: Path) -> bool:
    """Whether this is a FUSE mount that has lost its daemon."""
    try:
        os.statvfs(mountpoint)  # unlike stat, never answered from the kernel's cache
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _unescape(field: str) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
