"""What must be true before a mount is tried. Each check says in one line what is wrong and what to do about it.

All raise StartupError. Nothing is left behind but the cache directory.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from lazyfs.cli.mounts import FS_TYPE, find_mount, is_dead
from lazyfs.config import Config
from lazyfs.control.private import make_private_directory
from lazyfs.core.errors import StartupError

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")


def preflight(config: Config) -> None:
    """Return if the mount can be tried."""
    mountpoint = config.mount.mountpoint
    check_mountpoint(mountpoint)
    if config.cache.directory is not None:
        _check_apart(mountpoint, Path(os.path.realpath(config.cache.directory)), "cache directory")
    if config.log.file is not None:
        _check_apart(mountpoint, Path(os.path.realpath(config.log.file)), "log file")
    check_fuse(allow_other=config.mount.allow_other)
    if config.cache.directory is not None:
        make_private_directory(config.cache.directory)


def check_mountpoint(mountpoint: Path) -> None:
    """The mount point is a directory, and nothing is mounted on it."""
    entry = find_mount(mountpoint)
    if entry is not None and is_dead(mountpoint):
        raise StartupError(f"{mountpoint} is a mount whose daemon died; run: lazyfs umount {mountpoint}")
    if entry is not None:
        advice = f"; run: lazyfs umount {mountpoint}" if entry.fs_type == FS_TYPE else f" ({entry.fs_type})"
        raise StartupError(f"something is mounted on {mountpoint} already{advice}")
    try:
        if not stat.S_ISDIR(mountpoint.stat().st_mode):
            raise StartupError(f"the mount point {mountpoint} is not a directory")
    except FileNotFoundError as error:
        raise StartupError(f"the mount point {mountpoint} does not exist; run: mkdir -p {mountpoint}") from error
    except OSError as error:
        raise StartupError(f"cannot use the mount point {mountpoint}: {error.strerror}") from error


def check_fuse(*, allow_other: bool) -> None:
    """The kernel offers FUSE, and this user may mount."""
    if not FUSE_DEVICE.exists():
        raise StartupError(f"no {FUSE_DEVICE}: load it with `modprobe fuse`, or give it to the container (--device)")
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise StartupError(f"you may not open {FUSE_DEVICE}; as root: chmod 666 {FUSE_DEVICE}")
    if os.geteuid() == 0:  # root mounts by itself
        return
    if shutil.which("fusermount3") is None:
        raise StartupError("fusermount3 is not installed, without which only root can mount; run: apt install fuse3")
    if allow_other and not _user_allow_other():
        raise StartupError(f"--allow-other needs the line user_allow_other in {FUSE_CONF}")


def _user_allow_other() -> bool:
    try:
        lines = FUSE_CONF.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return "user_allow_other" in (line.strip() for line in lines)


def _check_apart(mountpoint: Path, other: Path, what: str) -> None:
    """The mount would wait for itself if it kept its own files below the mount point."""
    if other.is_relative_to(mountpoint):
        raise StartupError(f"the {what} {other} lies inside the mount point {mountpoint}")
    if mountpoint.is_relative_to(other):
        raise StartupError(f"the mount point {mountpoint} lies inside the {what} {other}")
