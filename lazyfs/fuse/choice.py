"""Which kernel session serves a mount."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Literal, TypeAlias

from lazyfs.fuse.mounting import DEVICE
from lazyfs.fuse.session import Session
from lazyfs.vfs.filesystem import FileSystem

SessionName: TypeAlias = Literal["auto", "pyfuse3", "direct"]
OLDEST_LINUX = (5, 4)
"""The first that speaks FUSE 7.31."""


def why_not_direct() -> str | None:
    """What stands in the way of the direct session here; None if nothing does."""
    if sys.platform != "linux":
        return f"it speaks with Linux, and this is {sys.platform}"
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    if release is not None and (int(release[1]), int(release[2])) < OLDEST_LINUX:
        return f"Linux {platform.release()} is older than 5.4"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{DEVICE} cannot be opened"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "only root can mount without fusermount3"
    return None


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
