"""The nouns of lazyfs.

Offsets are bytes of the object and ranges are half-open everywhere; (offset, length) lives only at the
kernel's door. Times are integer nanoseconds since the epoch (`_ns`) or float seconds (`_s`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

Buffer: TypeAlias = bytes | memoryview
"""Read-only bytes, shared without copying."""

ROOT_INO = 1
"""The inode number of the mount's root directory, as the kernel has it."""


class ObjectId(NamedTuple):
    """One version of one object: the only identity a cached byte may have.

    `etag` is the server's entity tag without its quotes; opaque, compared for equality only.
    """

    key: str
    etag: str


class Range(NamedTuple):
    """The bytes [start, stop) of an object."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of bytes; never negative for a well-formed range."""
        return self.stop - self.start

    def clamp(self, size: int) -> Range:
        """The part of this range that lies inside an object of `size` bytes; may be empty."""
        stop = min(self.stop, size)
        return Range(min(self.start, stop), stop)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the server says of one object. LIST leaves `metadata` and `content_type` empty; HEAD fills them."""

    key: str
    etag: str
    size: int
    mtime_ns: int
    storage_class: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""

    @property
    def oid(self) -> ObjectId:
        """The version that this information is about."""
        return ObjectId(self.key, self.etag)


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing, in key order unless the server is known not to sort.

    `next_token` is None on the last page.
    """

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...] = ()
    next_token: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be true of the key for a write to happen: absent, or still this ETag. Default: anything."""

    absent: bool = False
    etag: str | None = None

    @property
    def is_set(self) -> bool:
        """Whether the write depends on anything at all."""
        return self.absent or self.etag is not None


ANY = Condition()


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload in progress. It ends in complete or abort, never in neither.

    `begun_ns` is when that was by the server's clock, in whole seconds, where a list of uploads tells it; else 0.
    """

    key: str
    upload_id: str
    begun_ns: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Part:
    """One uploaded part; numbers start at 1. `checksum` is what was sent with it (base64), empty if nothing was."""

    number: int
    etag: str
    size: int
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an endpoint was seen to do. Nothing here is believed because a call merely succeeded."""

    range_206: bool = True
    if_match_get: bool = True
    conditional_put: bool = True


class Kind(enum.IntEnum):
    """What a namespace entry is."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2


class Attributes(NamedTuple):
    """What stat tells. `timeout_s` is how long the kernel may believe it without asking again."""

    ino: int
    kind: Kind
    size: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int
    timeout_s: float
    links: int = 1
    """How many names it has; 0 if it is only open any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What setattr asks for; None leaves a field alone."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
