"""Which kernel session serves a mount."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from lazyfs.fuse.mounting import why_not_direct
from lazyfs.fuse.session import Session
from lazyfs.vfs.filesystem import FileSystem

SessionName: TypeAlias = Literal["auto", "pyfuse3", "direct"]


def chosen(name: SessionName) -> Literal["pyfuse3", "direct"]:
    """The session that `name` means here."""
    if name != "auto":
        return name
    return "direct" if why_not_direct() is None else "pyfuse3"


def new_session(
    name: SessionName, filesystem: FileSystem, *, mountpoint: Path, source: str, allow_other: bool
) -> Session:
    """A session that is not mounted yet."""
    if chosen(name) == "direct":
        from lazyfs.fuse.direct import DirectSession  # noqa: PLC0415 - only one of them is needed

        return DirectSession(filesystem, mountpoint=mountpoint, source=source, allow_other=allow_other)
    from lazyfs.fuse.libfuse import Pyfuse3Session  # noqa: PLC0415 - only one of them is needed

    return Pyfuse3Session(filesystem, mountpoint=mountpoint, source=source, allow_other=allow_other)
