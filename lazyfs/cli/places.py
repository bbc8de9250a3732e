"""From a path that a user names to the daemon that serves it. Never asks the mount itself, which may hang."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.cli.mounts import FS_TYPE, MountEntry, parse_mountinfo
from lazyfs.control import registry
from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.errors import StartupError

ANSWER_S = 120.0
"""A page may have to list a directory first, which is tried again for a minute when the endpoint is in trouble."""


@dataclass(frozen=True, slots=True)
class Place:
    """`path` in the mount of `registration`, without slashes at its ends."""

    registration: Registration
    path: str

    def ask(self, verb: str, *, timeout_s: float = ANSWER_S, **arguments: Any) -> dict[str, Any]:
        """The daemon's answer. ControlError."""
        return call(self.registration.socket, verb, timeout_s=timeout_s, **arguments)

    def entries(self, *, verb: str = "entries", **arguments: Any) -> Iterator[dict[str, Any]]:
        """What the daemon tells of the path, page by page. ControlError."""
        after: str | None = ""
        while after is not None:
            page = self.ask(verb, path=self.path, after=after, **arguments)
            yield from page["entries"]
            after = page["after"]

    def import_state(self) -> str:
        """How far the mount's listing is: until that is done, the index does not know all. ControlError."""
        return str(self.ask("status")["import"]["state"])

    def full(self, path: str) -> str:
        """A path in the mount as a user may use it."""
        return os.path.join(self.registration.mountpoint, path) if path else self.registration.mountpoint


class Places:
    """Finds places, by one look at the kernel's table of mounts."""

    def __init__(self) -> None:
        table = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
        self._mounts = parse_mountinfo(table)
        self._served: dict[Path, Registration] = {}

    def locate(self, text: str) -> Place:
        """Whose `text` is. StartupError if it is in no mount, or in one whose daemon has died."""
        path = Path(os.path.abspath(os.path.expanduser(text)))
        entry = mount_of(path, self._mounts)
        if entry is None or entry.fs_type != FS_TYPE:  # a link may lead into one
            path = Path(os.path.realpath(path.parent)) / path.name
            entry = mount_of(path, self._mounts)
        if entry is None or entry.fs_type != FS_TYPE:
            raise StartupError(f"{text} is not in a mount of lazyfs")
        relative = os.path.relpath(path, entry.mountpoint)
        return Place(self._registration(entry.mountpoint), "" if relative == "." else relative)

    def is_inside(self, text: str) -> bool:
        """Whether it is below a mount point of lazyfs, and not one itself."""
        path = Path(os.path.abspath(os.path.expanduser(text)))
        entry = mount_of(path, self._mounts)
        return entry is not None and entry.fs_type == FS_TYPE and entry.mountpoint != path

    def _registration(self, mountpoint: Path) -> Registration:
        if mountpoint not in self._served:
            registration = registry.find(mountpoint)
            if registration is None:
                raise StartupError(f"{mountpoint} is not a mount of lazyfs of this user")
            if not registration.is_alive:
                raise StartupError(f"the daemon of {mountpoint} has died; run: lazyfs umount {mountpoint}")
            self._served[mountpoint] = registration
        return self._served[mountpoint]


def locate(text: str) -> Place:
    """Whose `text` is. StartupError if it is in no mount, or in one whose daemon has died."""
    return Places().locate(text)


def mount_of(path: Path, mounts: list[MountEntry]) -> MountEntry | None:
    """The mount that `path` lies in: the deepest, and of those the last."""
    found = None
    for entry in mounts:
        if path.is_relative_to(entry.mountpoint) and (
            found is None or len(entry.mountpoint.parts) >= len(found.mountpoint.parts)
        ):
            found = entry
    return found
