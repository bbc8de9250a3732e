"""Mode, owner and times of a file as user metadata of its object.

Written as FSx for Lustre, DataSync and File Gateway do; read tolerantly: their forms, those of s3fs and rclone, and
rubbish, which says nothing. Never raises: a bucket may hold anything.
Source: "POSIX metadata support for data repositories" in the FSx for Lustre user guide.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass

PERMISSIONS, OWNER, GROUP, MTIME, ATIME = "file-permissions", "file-owner", "file-group", "file-mtime", "file-atime"
KEYS = frozenset({PERMISSIONS, OWNER, GROUP, MTIME, ATIME})

MAX_ID = 2**32 - 2
"""The largest uid or gid; the one above it means "leave it"."""
GIVES_RIGHTS = stat.S_ISUID | stat.S_ISGID
"""Bits of a mode that are believed of nobody but who sets them here."""
MAX_NS = 2**63 - 1
_KINDS = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK})

_OCTAL = re.compile(r"0?([0-7]{1,6})", re.ASCII)
_DECIMAL = re.compile(r"(-?\d{1,19})", re.ASCII)
_NANOSECONDS = re.compile(r"(-?\d{1,19})(ns)?", re.ASCII)
_SECONDS = re.compile(r"(-?)(\d{1,10})(?:\.(\d{1,9})\d*)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Posix:
    """What is known of a file besides its bytes; None is not known.

    `mode` is as in st_mode; without a type of file where that is not known.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None

    def to_metadata(self) -> dict[str, str]:
        """The user metadata that says this."""
        said = {
            PERMISSIONS: None if self.mode is None else f"{self.mode:07o}",
            OWNER: None if self.uid is None else str(self.uid),
            GROUP: None if self.gid is None else str(self.gid),
            MTIME: None if self.mtime_ns is None else f"{self.mtime_ns}ns",
            ATIME: None if self.atime_ns is None else f"{self.atime_ns}ns",
        }
        return {key: value for key, value in said.items() if value is not None}


UNKNOWN = Posix()


def from_metadata(metadata: Mapping[str, str]) -> Posix:
    """What user metadata says of a file, as far as it can be understood.

    `GIVES_RIGHTS` is left out: who may write to the bucket could hand them to anybody.
    """
    said = {key.lower(): value.strip() for key, value in metadata.items()}
    mode = _mode(said.get(PERMISSIONS, ""), _OCTAL, 8)
    return Posix(
        mode=_mode(said.get("mode", ""), _DECIMAL, 10) if mode is None else mode,  # s3fs
        uid=_id(said, OWNER, "uid"),
        gid=_id(said, GROUP, "gid"),
        mtime_ns=_time(said, MTIME, "mtime"),
        atime_ns=_time(said, ATIME, "atime"),
    )


def _mode(text: str, form: re.Pattern[str], base: int) -> int | None:
    found = form.fullmatch(text)
    if found is None:
        return None
    mode = int(found[1], base)
    if not 0 <= mode <= 0o177777:
        return None
    kind = stat.S_IFMT(mode)
    return (kind if kind in _KINDS else 0) | (mode & 0o7777 & ~GIVES_RIGHTS)


def _id(said: Mapping[str, str], *keys: str) -> int | None:
    for key in keys:
        found = _DECIMAL.fullmatch(said.get(key, ""))
        if found is not None and 0 <= int(found[1]) <= MAX_ID:
            return int(found[1])
    return None


def _time(said: Mapping[str, str], key: str, other: str) -> int | None:
    """Nanoseconds with `ns`, milliseconds without; else the seconds, with a fraction, of s3fs and rclone."""
    found = _NANOSECONDS.fullmatch(said.get(key, ""))
    if found is not None:
        return _within(int(found[1]) * (1 if found[2] else 10**6))
    found = _SECONDS.fullmatch(said.get(other, ""))
    if found is None:
        return None
    ns = int(found[2]) * 10**9 + int((found[3] or "").ljust(9, "0"))
    return _within(-ns if found[1] else ns)


def _within(ns: int) -> int | None:
    return ns if -MAX_NS <= ns <= MAX_NS else None
