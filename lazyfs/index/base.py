"""What the namespace on disk holds, as plain rows."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from lazyfs.core.posix import Posix
from lazyfs.core.types import Kind

LOCAL_ETAG = "<local>"
"""The ETag of a file that exists here and not in the bucket yet. No listing may touch such a row."""


NO_MODE = 0
"""The mode of a row whose object was asked for it and does not say."""

NOTHING_BELOW: Mapping[str, str] = MappingProxyType({})


class Node(NamedTuple):
    """One row: an entry of a directory. `ino` stands for one version of one object and is never used again.

    `checked_ns`: when this entry alone was last seen to be true. `listed_ns`: when the listing that last told all
    entries of this directory began; None for files and for directories that were never fully listed.
    `mode` is as in st_mode, `NO_MODE` if the object was asked and says nothing; it and the owner are None if they were
    neither set here nor asked for.
    """

    ino: int
    parent: int
    entry: str
    size: int
    mtime_ns: int
    etag: str
    storage_class: str
    checked_ns: int
    listed_ns: int | None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None

    @property
    def kind(self) -> Kind:
        """File, directory or symbolic link. A link is one that we made or whose metadata were read."""
        if self.entry.endswith("/") or self.entry == "":
            return Kind.DIRECTORY
        return Kind.SYMLINK if self.mode is not None and stat.S_ISLNK(self.mode) else Kind.FILE

    @property
    def name(self) -> str:
        """The name as a user sees it; empty for the root."""
        return self.entry.removesuffix("/")

    @property
    def is_local(self) -> bool:
        """Whether this file is being written and is not in the bucket yet."""
        return self.etag == LOCAL_ETAG


ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


def is_archived(node: Node) -> bool:
    """Whether the object lies in a storage class that must be restored before it can be read."""
    return node.storage_class in ARCHIVE_CLASSES


class Row(NamedTuple):
    """What is only here, by its path below the mounted prefix; a directory's ends in `/`."""

    path: str
    size: int
    mtime_ns: int
    posix: Posix


class Change(NamedTuple):
    """A name that no longer means what it did. `ino` is what it meant, 0 if nothing."""

    parent: int
    name: str
    ino: int


@dataclass(slots=True)
class Applied:
    """What applying facts to the index did."""

    changes: list[Change] = field(default_factory=list)
    objects: int = 0
    """Files added less files removed."""
    bytes: int = 0
    directories: int = 0
