"""The namespace on disk: an SQLite file, truth for names and attributes, kept over restarts.

Reads are synchronous point look-ups on the main thread (6 µs each) through a connection that cannot write. All
writes go through one other connection in worker threads, one transaction at a time; in WAL mode neither waits
for the other. The file is a cache of the bucket: it may be lost at any time, so commits are not synced to disk, and
where it cannot be used any more the index goes on in another (`index.leaving`).

Hard points: an inode number is a rowid under AUTOINCREMENT, so that it is never given out twice and a changed
object gets a new one (`Transactions._insert`); facts from a listing that began before a local change say nothing
about that name (`Index.listing`, `Index.note_local`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio

from lazyfs.core.errors import IndexTroubleError
from lazyfs.core.listing import Entry, PageFacts
from lazyfs.core.posix import UNKNOWN, Posix
from lazyfs.core.types import ROOT_INO
from lazyfs.index.base import NOTHING_BELOW, Applied, Node, Row
from lazyfs.index.leaving import FAILURES, FURTHER, Failure, bring_home, is_of_the_file, move, set_aside
from lazyfs.index.transactions import COLUMNS, DamagedIndexError, Newer, Transactions, connect, node_of

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_MOVES = 16
"""Of an index from a file that failed to another, before calls on the mount fail."""
MAX_DEPTH = 1024
"""Directories above one another: a key has no more bytes. A damaged file may have a circle."""


class Listing:
    """A listing in progress: what was changed here since it began, it cannot know."""

    def __init__(self, began: int) -> None:
        self.began = began


class Index:
    """The namespace of one mounted prefix. Owned by the main thread; `close` it."""

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        """Open or create the file at `path` for the bucket that `identity` names. DamagedIndexError."""
        self.file = self._home = path
        self.trouble: str | None = None
        """Why the index is not in its file any more; None: it is."""
        self.losses = 0
        """How often the index had to begin anew, and nothing was known any more of what was."""
        self._lost = trio.Event()
        """Set, and made anew, when that happens again."""
        self._told_losses = 0
        self._identity = identity
        self._stack = contextlib.ExitStack()
        self._leaving = threading.Lock()
        self._moves = 0
        self._writer = Transactions(path, identity)
        self._stack.callback(self._writer.close)
        self._newest = self._writer.newest()
        self._read = self._reading(path)
        self._turn = trio.CapacityLimiter(1)
        self._local: dict[tuple[int, str], int] = {}
        self._local_sequence = 0
        self._listings: set[Listing] = set()
        self._holds: Counter[str] = Counter()
        self._let_go: dict[str, int] = {}
        """Paths that were held, and when they were let go, for as long as a listing is under way that began before."""
        self._moving: list[str] = []
        self._moved: list[tuple[str, int]] = []
        """The same of paths under which everything is held."""
        self.files: int
        self.bytes: int
        self.files, self.bytes = self._writer.totals()

    def close(self) -> None:
        """Let go of the file. No write is in progress."""
        if self.file != self._home:
            bring_home(self.file, self._home)
        self._stack.close()

    def _reading(self, path: Path) -> sqlite3.Connection:
        read = connect(path)
        self._stack.callback(read.close)
        read.execute("PRAGMA query_only = 1")
        return read

    # -- a file that cannot be used any more -----------------------------------------------------------------

    def _ask(self, query: str, *values: object) -> list[Any]:
        """All rows that answer `query`; where the file cannot be read, of the one that takes its place."""
        return self._read_rows(list, query, values)

    def _nodes(self, query: str, *values: object, answers: Callable[[Node], bool]) -> list[Node]:
        """The same of whole rows, ordered by entry. In a damaged file the index may lead to another row, so each must
        be an answer."""

        def shaped(rows: list[Any]) -> list[Node]:
            nodes = [node_of(row) for row in rows]
            in_order = all(one.entry < other.entry for one, other in itertools.pairwise(nodes))
            if not (in_order and all(map(answers, nodes))):
                raise sqlite3.DatabaseError("a row is not what its index says")
            return nodes

        return self._read_rows(shaped, query, values)

    def _read_rows(self, shaped: Callable[[list[Any]], list[T]], query: str, values: Sequence[object]) -> list[T]:
        while True:
            writer, read = self._writer, self._read  # in this order: `_leave` changes them in the other
            try:
                return shaped(read.execute(query, values).fetchall())
            except FAILURES as error:
                self._leave(writer, error)
                self._tell_lost()

    def _leave(self, writer: Transactions, error: Failure) -> None:
        """Go on with another file than that of `writer`, which had `error`. In any thread. Raises `error` if it is not
        the file's, LazyfsError if there is no place for another."""
        if not is_of_the_file(error, writer.path):
            raise error
        with self._leaving:
            if self._writer is not writer:
                return  # another thread had the same trouble before, and it is dealt with
            if self._moves >= MAX_MOVES:
                self._say(str(error), "that has happened too often")
                raise IndexTroubleError(f"index {self.file}: {error}") from error
            self._newest += FURTHER
            try:
                moved, is_empty = move(self.file, self._identity, error, newest=self._newest, stack=self._stack)
                read = self._reading(moved.path)
            except (OSError, *FAILURES, DamagedIndexError) as failure:
                self._say(str(error), f"and there is no other place for it: {failure}")
                raise IndexTroubleError(f"index {self.file}: {error}") from error
            what = "the bucket is listed again" if is_empty else "nothing of it is lost"
            self._say(f"{error}, so it is {moved.path}", what)
            self.file = moved.path
            self._moves += 1
            if is_empty:
                self.losses += 1
                self.files, self.bytes = moved.totals()
            self._read = read
            self._writer = moved

    def _say(self, trouble: str, consequence: str) -> None:
        """Warn, of the same trouble once."""
        if trouble != self.trouble:
            log.warning("index %s: %s; %s", self._home, trouble, consequence)
        self.trouble = trouble

    def _tell_lost(self) -> None:
        """On the main thread, after anything that may have been a loss."""
        if self.losses > self._told_losses:
            self._told_losses = self.losses
            self._lost.set()
            self._lost = trio.Event()

    async def lost(self, before: int) -> int:
        """Return when there were more losses than `before`; how many."""
        while self.losses <= before:
            await self._lost.wait()
        return self.losses

    # -- reading: never blocks on a writer --------------------------------------------------------------------

    def node(self, ino: int) -> Node | None:
        """The row of inode `ino`."""
        return self._one(f"SELECT {COLUMNS} FROM node WHERE ino = ?", ino, answers=lambda node: node.ino == ino)

    def child(self, parent: int, name: str) -> Node | None:
        """What `name` in directory `parent` is; a directory hides the file of the same name."""
        return self._one(
            f"SELECT {COLUMNS} FROM node WHERE parent = ? AND entry IN (?, ?) ORDER BY entry DESC LIMIT 1",
            parent, name, name + "/",
            answers=lambda node: node.parent == parent and node.name == name,
        )  # fmt: skip

    def entry(self, parent: int, entry: str) -> Node | None:
        """The row of exactly this entry, hidden or not."""
        return self._one(
            f"SELECT {COLUMNS} FROM node WHERE parent = ? AND entry = ?", parent, entry,
            answers=lambda node: node.parent == parent and node.entry == entry,
        )  # fmt: skip

    def children(self, parent: int, *, after: str = "", upto: str | None = None, limit: int) -> list[Node]:
        """The visible entries of `parent` whose entry name is above `after`, in order, at most `limit`.

        A directory hides the file of the same name; not one above `upto`, of which a listing has yet to tell.
        """
        return self._nodes(
            f"SELECT {COLUMNS} FROM node WHERE parent = ? AND entry > ? AND NOT EXISTS ("
            "SELECT 1 FROM node AS hiding WHERE hiding.parent = node.parent AND hiding.entry = node.entry || '/'"
            " AND (? IS NULL OR hiding.entry <= ?)) ORDER BY entry LIMIT ?",
            parent, after, upto, upto, limit,
            answers=lambda node: node.parent == parent and node.entry > after,
        )  # fmt: skip

    def version(self) -> int:
        """Another number after each transaction."""
        found = int(self._ask("PRAGMA data_version")[0][0])  # of one file
        return found + (self._moves << 32)

    def is_empty(self, parent: int) -> bool:
        """Whether no entry of `parent` is known."""
        return not self._ask("SELECT 1 FROM node WHERE parent = ? LIMIT 1", parent)

    def has_more_than(self, parent: int, count: int) -> bool:
        """Whether more than `count` entries of `parent` are known."""
        return bool(self._ask("SELECT 1 FROM node WHERE parent = ? LIMIT 1 OFFSET ?", parent, count))

    def path(self, ino: int) -> str | None:
        """The path of `ino` below the mounted prefix, directories ending in `/`; None if it is gone."""
        parts: list[str] = []
        while ino != ROOT_INO:
            rows = self._ask("SELECT parent, entry FROM node WHERE ino = ?", ino)
            if not rows or len(parts) > MAX_DEPTH:
                return None
            ((ino, entry),) = rows
            parts.append(entry)
        return "".join(reversed(parts))

    def find_directory(self, path: str) -> int | None:
        """The inode of the directory at `path` (no slash at the end), if it is known."""
        ino = ROOT_INO
        for name in path.split("/") if path else ():
            rows = self._ask("SELECT ino FROM node WHERE parent = ? AND entry = ?", ino, name + "/")
            if not rows:
                return None
            ((ino,),) = rows
        return ino

    def meta(self, key: str) -> str | None:
        """A remembered value."""
        rows = self._ask("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def _one(self, query: str, *values: object, answers: Callable[[Node], bool]) -> Node | None:
        rows = self._nodes(query, *values, answers=answers)
        return rows[0] if rows else None

    # -- writing: one transaction at a time, in a thread --------------------------------------------------------

    @contextlib.contextmanager
    def listing(self) -> Iterator[Listing]:
        """Mark the time during which facts are being fetched, so that local changes win over older facts."""
        listing = Listing(self._local_sequence)
        self._listings.add(listing)
        try:
            yield listing
        finally:
            self._listings.discard(listing)
            if not self._listings:
                self._local.clear()
                self._let_go.clear()
                self._moved.clear()

    def note_local(self, parent: int, name: str) -> None:
        """`name` was just changed by us: what listings in progress say about it is out of date."""
        if self._listings:
            self._local_sequence += 1
            self._local[parent, name] = self._local_sequence

    def hold(self, path: str) -> None:
        """From now on the bucket says nothing about `path` (a directory's ends in `/`): it is to be changed there. As
        often as it is held it must be let go."""
        self._holds[path] += 1

    def let_go(self, path: str) -> None:
        """The bucket has it now, though not what was asked before."""
        self._holds[path] -= 1
        if not self._holds[path]:
            del self._holds[path]
            if self._listings:
                self._local_sequence += 1
                self._let_go[path] = self._local_sequence

    @contextlib.contextmanager
    def renaming(self, *paths: str) -> Iterator[None]:
        """For the body of the `with` the bucket says nothing about `paths`, nor about what lies below those that end in
        `/`: halfway through, it has both names or neither. What is asked for before the end does not count either."""
        self._moving += paths
        try:
            yield
        finally:
            for path in paths:
                self._moving.remove(path)
            if self._listings:
                self._local_sequence += 1
                self._moved += [(path, self._local_sequence) for path in paths]

    async def apply_page(self, facts: PageFacts, listing: Listing, *, page_ns: int, began_ns: int) -> Applied:
        """Make a page of a listing true. Directories that it completes count as listed since `began_ns`."""
        newer = self._newer_than(listing)
        return await self._run(lambda: self._writer.apply_page(facts, newer, page_ns, began_ns))

    async def apply_names(
        self, parent: int, names: Sequence[str], entries: Sequence[Entry], listing: Listing, *, now_ns: int
    ) -> Applied:
        """Make it true that of `names` (entry names in `parent`) exactly `entries` exist."""
        newer = self._newer_than(listing)
        holds = self._holds or self._let_go or self._moving or self._moved
        path = (self.path(parent) or "") if holds else ""
        return await self._run(lambda: self._writer.apply_names(parent, names, entries, newer, now_ns, path))

    async def put_entry(self, parent: int, entry: Entry, *, now_ns: int, posix: Posix = UNKNOWN) -> Node:
        """Our own change: the entry is so now. Keeps the inode number of a row that is there, and of its mode and owner
        what `posix` does not know."""
        self.note_local(parent, entry.name.removesuffix("/"))
        node, applied = await self._run_raw(lambda: self._writer.put_entry(parent, entry, now_ns, posix))
        self._count(applied)
        return node

    async def describe(self, ino: int, posix: Posix) -> Node | None:
        """Mode, owner and modification time of an inode are so, as far as `posix` knows them; its row, None if it is
        gone. Not a change of the object: it is as old or as new as before."""
        return await self._run_raw(lambda: self._writer.describe(ino, posix))

    async def arrived(self, node: Node, etag: str, *, now_ns: int) -> Node | None:
        """Our own change: what was only here is in the bucket as version `etag`, and the rest of its row as it is; the
        row, None if it is gone."""
        self.note_local(node.parent, node.name)
        return await self._run_raw(lambda: self._writer.arrived(node.ino, etag, now_ns))

    async def remove_entry(self, parent: int, name: str) -> None:
        """Our own change: entry `name` (with `/` for a directory) is gone."""
        self.note_local(parent, name.removesuffix("/"))
        await self._run(lambda: self._writer.remove_entry(parent, name))

    async def move_entry(
        self,
        node: Node,
        parent: int,
        name: str,
        entry: Entry,
        *,
        now_ns: int,
        below: Mapping[str, str] = NOTHING_BELOW,
    ) -> Node:
        """Our own rename: the row becomes `entry` in `parent`, replacing what has that name; it keeps its number, and
        so does all that lies in it. `below` are the ETags that files in it have now, by their path."""
        self.note_local(node.parent, node.name)
        self.note_local(parent, name)
        moved, applied = await self._run_raw(lambda: self._writer.move_entry(node, parent, entry, now_ns, below))
        self._count(applied)
        return moved

    async def restore(self, made: Sequence[Row], gone: Sequence[str] = ()) -> None:
        """What is only here, whether it was known or not; and paths that are only in the bucket, and shall not be."""
        for path in (*(row.path for row in made), *gone):
            parent = self.find_directory(path.removesuffix("/").rpartition("/")[0])
            if parent is not None:
                self.note_local(parent, path.removesuffix("/").rpartition("/")[2])
        await self._run(lambda: self._writer.restore(made, gone))

    async def remove_local(self) -> None:
        """Forget files that a killed daemon had not finished."""
        await self._run(self._writer.remove_local)

    async def set_meta(self, key: str, value: str) -> None:
        """Remember a value."""
        await self._run_raw(lambda: self._writer.set_meta(key, value))

    def _newer_than(self, listing: Listing) -> Newer:
        names = frozenset(key for key, sequence in self._local.items() if sequence > listing.began)
        moved = [*self._moving, *(path for path, sequence in self._moved if sequence > listing.began)]

        def is_held(path: str) -> bool:
            if path in self._holds or self._let_go.get(path, 0) > listing.began:
                return True
            return any(path == one or (one.endswith("/") and path.startswith(one)) for one in moved)

        return Newer(names, is_held)

    async def _run(self, work: Callable[[], Applied]) -> Applied:
        applied = await self._run_raw(work)
        self._count(applied)
        return applied

    def _count(self, applied: Applied) -> None:
        self.files += applied.objects
        self.bytes += applied.bytes

    async def _run_raw(self, work: Callable[[], T]) -> T:
        def through() -> T:
            while True:
                writer = self._writer
                try:
                    return work()
                except FAILURES as error:
                    self._leave(writer, error)

        try:
            return await trio.to_thread.run_sync(through, limiter=self._turn)
        finally:
            self._tell_lost()


def open_index(path: Path, identity: Mapping[str, str], warn: Callable[[str], None]) -> Index:
    """The index at `path`; a damaged or foreign file is set aside with a warning, and a new one begun."""
    try:
        return Index(path, identity)
    except DamagedIndexError as error:
        warn(f"setting aside the index {path}: {error}; the bucket will be listed again")
        set_aside(path)
        return Index(path, identity)
