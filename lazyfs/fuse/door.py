"""The errno door, and how the kernel's words become ours: what both kernel sessions share."""

from __future__ import annotations

import errno
import logging

from lazyfs.core.errors import BadNameError, LazyfsError
from lazyfs.core.posix import MAX_ID, Posix

log = logging.getLogger(__name__)

VIRTUAL_BYTES = 2**60
"""The size that statfs tells: a bucket has none."""
VIRTUAL_FILES = 2**40
STATFS_BLOCK = 4096


def errno_of(error: Exception, verb: str) -> int:
    """The one place where errors become errno. What nobody expected is logged and becomes EIO."""
    if isinstance(error, LazyfsError):
        log.debug("%s: %s: %s", verb, type(error).__name__, error)
        return error.errno
    log.error("unexpected error in %s", verb, exc_info=error)
    return errno.EIO


def to_name(name: bytes) -> str:
    """A name as text. Keys are UTF-8, so nothing else can be one. BadNameError."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise BadNameError(f"{name!r} is not UTF-8") from None


def made_by(mode: int, uid: int, gid: int) -> Posix:
    """Whose a new file is, and who may do what with it. The kernel has taken the umask off already; an id that means
    nothing outside of somebody's container is nobody's."""
    return Posix(mode=mode, uid=uid if uid <= MAX_ID else None, gid=gid if gid <= MAX_ID else None)
