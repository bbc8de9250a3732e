"""The tree in the order of names, page by page: what commands are asked about and answer in pieces.

Promises that a page is bounded in entries, in what was looked at for it and in time, that what exists all the time is
told exactly once however the pages fall, and that nothing is remembered between two pages but the name where the first
ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from lazyfs.core.errors import NoEntryError, NotDirectoryError, StaleInodeError
from lazyfs.core.places import Pattern, has_magic, is_text, split_pattern
from lazyfs.core.types import ROOT_INO, Kind
from lazyfs.index.base import Node
from lazyfs.index.database import Index
from lazyfs.vfs.namespace import Namespace

_PAGE = 512
SCAN = 4096
"""Entries that are looked at for a page at the most."""
PAGE_S = 1.0
"""After this long a page ends with what there is."""


class Entry(NamedTuple):
    """A file or directory and its path in the mount; a directory's ends in `/`."""

    node: Node
    path: str


class Page(NamedTuple):
    """Some entries; `after` is where the next page goes on, None if there is none."""

    entries: list[Entry]
    after: str | None


@dataclass(slots=True)
class _Frame:
    """A directory on the way, `level` components below where the walk begins."""

    ino: int
    path: str
    after: str
    level: int
    rows: deque[Node] = field(default_factory=deque)
    is_read: bool = False


class Walk:
    """What `path`, a literal name or else a glob, means below the mount.

    `depth` is how far below it is told: 0 is what it names itself, directories too; 1 is files, and what is in
    directories; None is everything below. With `asks` a directory that was never listed is listed; without, only the
    index is read. NoEntryError, StoreError.
    """

    def __init__(self, namespace: Namespace, index: Index, path: str, *, depth: int | None, asks: bool) -> None:
        self._namespace = namespace
        self._index = index
        self._path = path
        self._depth = depth
        self._asks = asks
        self._base = ""
        self._pattern = Pattern(())

    async def page(self, after: str = "", *, limit: int, fits: Callable[[Entry], bool] = lambda _: True) -> Page:
        """The next entries that fit, behind the path `after`; none and an `after` if none was among those looked at."""
        node = await self._begin()
        if node.kind is not Kind.DIRECTORY:
            entry = Entry(node, self._base)
            return Page([entry] if not after and fits(entry) else [], None)
        if self._depth == 0 and not len(self._pattern):
            return Page([Entry(node, self._base + "/" if self._base else "")], None)
        found: list[Entry] = []
        looked, deadline = 0, trio.current_time() + PAGE_S
        stack = list(self._resumed(node, after))
        while (passed := await self._next(stack)) is not None:
            looked += 1
            entry, is_told = passed
            if is_told and fits(entry):
                found.append(entry)
            if len(found) >= limit or looked >= SCAN or trio.current_time() > deadline:
                return Page(found, entry.path)
        return Page(found, None)

    async def _begin(self) -> Node:
        """The node where the walk begins; what is left of the path is a pattern then."""
        try:
            self._base = self._path
            return await find(self._namespace, self._index, self._path, asks=self._asks)
        except (NoEntryError, NotDirectoryError):
            if not has_magic(self._path):
                raise
        self._base, pattern = split_pattern(self._path)
        self._pattern = Pattern(pattern)
        return await find(self._namespace, self._index, self._base, asks=self._asks)

    async def _next(self, stack: list[_Frame]) -> tuple[Entry, bool] | None:
        """The next entry that the walk passes, and whether it is one to tell; None at the end."""
        while stack:
            frame = stack[-1]
            if not frame.rows and not await self._read(frame):
                stack.pop()
                continue
            node = frame.rows.popleft()
            if not self._pattern.matches(frame.level, node.name):
                continue
            entry, level = Entry(node, frame.path + node.entry), frame.level + 1
            if node.kind is Kind.DIRECTORY and self._descends(level):
                stack.append(_Frame(node.ino, entry.path, "", level))
            return entry, self._tells(node, level)
        return None

    def _tells(self, node: Node, level: int) -> bool:
        if level < len(self._pattern):
            return False
        return self._depth == 0 or node.kind is not Kind.DIRECTORY or level > len(self._pattern)

    def _descends(self, level: int) -> bool:
        return self._depth is None or level < len(self._pattern) + self._depth

    async def _read(self, frame: _Frame) -> bool:
        """Read on in a directory; False at its end."""
        await trio.lowlevel.checkpoint()
        if frame.is_read:
            return False
        try:
            if self._asks and not frame.after and self._namespace.node(frame.ino).listed_ns is None:
                await self._namespace.ensure_listed(frame.ino)
        except (StaleInodeError, NotDirectoryError):
            return False  # it went meanwhile
        rows = self._index.children(frame.ino, after=frame.after, limit=_PAGE)
        frame.rows += rows
        frame.is_read = len(rows) < _PAGE
        if rows:
            frame.after = rows[-1].entry
        return bool(rows)

    def _resumed(self, base: Node, after: str) -> Iterator[_Frame]:
        """The directories on the way to the path `after`, each behind the one below it."""
        start = self._base + "/" if self._base else ""
        ino, path = base.ino, start
        *above, last = after.removeprefix(start).split("/")
        for level, name in enumerate(above):
            yield _Frame(ino, path, name + "/", level)
            found = self._index.entry(ino, name + "/")
            if found is None:
                return
            ino, path = found.ino, path + name + "/"
        if last or not above or self._descends(len(above)):
            yield _Frame(ino, path, last, len(above))


async def find(namespace: Namespace, index: Index, path: str, *, asks: bool) -> Node:
    """What `path` is. Without `asks` only the index is read. NoEntryError, StoreError."""
    if not is_text(path):
        raise NoEntryError(f"{path!r}: no such file")
    node = namespace.node(ROOT_INO)
    for name in path.split("/") if path else ():
        if node.kind is not Kind.DIRECTORY:
            raise NoEntryError(f"{path}: {node.name} is not a directory")
        try:
            found = await namespace.lookup(node.ino, name) if asks else index.child(node.ino, name)
        except NoEntryError:
            found = None
        if found is None:
            raise NoEntryError(f"{path}: no such file or directory" + ("" if asks else " in the index"))
        node = found
    return node
