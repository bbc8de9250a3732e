"""The transactions that change the namespace on disk.

Each public method is one transaction on the one connection that writes, run by one thread at a time. Facts about slices
of directories come in, what they changed comes out.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lazyfs.core.errors import StaleInodeError
from lazyfs.core.listing import Entry, PageFacts, Slice, diff
from lazyfs.core.posix import UNKNOWN, Posix
from lazyfs.core.types import ROOT_INO
from lazyfs.index.base import LOCAL_ETAG, Applied, Change, Node, Row


@dataclass(frozen=True, slots=True)
class Newer:
    """What facts do not know: what was changed here after they began to be fetched, or is not in the bucket yet."""

    names: frozenset[tuple[int, str]]
    """(directory, name)."""
    is_held: Callable[[str], bool]
    """Whether that is so of this path."""

    def knows(self, ino: int, directory: str, entry: str) -> bool:
        """Whether facts say nothing about `entry` of directory `ino`, whose path is `directory`."""
        return (ino, entry.removesuffix("/")) in self.names or self.is_held(directory + entry)


_NOTHING_NEWER = Newer(frozenset(), lambda _path: False)


SCHEMA_VERSION = 3
SCHEMA = f"""
CREATE TABLE node (
    ino INTEGER PRIMARY KEY AUTOINCREMENT,
    parent INTEGER NOT NULL,
    entry TEXT NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    mtime_ns INTEGER NOT NULL DEFAULT 0,
    etag TEXT NOT NULL DEFAULT '',
    storage_class TEXT NOT NULL DEFAULT '',
    checked_ns INTEGER NOT NULL DEFAULT 0,
    listed_ns INTEGER,
    mode INTEGER,
    uid INTEGER,
    gid INTEGER
);
CREATE UNIQUE INDEX node_entry ON node (parent, entry);
CREATE INDEX node_local ON node (ino) WHERE etag = '{LOCAL_ETAG}';
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE total (files INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0);
INSERT INTO node (ino, parent, entry) VALUES ({ROOT_INO}, 0, '');
PRAGMA user_version = {SCHEMA_VERSION};
"""
COLUMNS = "ino, parent, entry, size, mtime_ns, etag, storage_class, checked_ns, listed_ns, mode, uid, gid"
_INSERT = (
    "INSERT INTO node (parent, entry, size, mtime_ns, etag, storage_class, checked_ns) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_DESCRIBE = "mode = coalesce(?, mode), uid = coalesce(?, uid), gid = coalesce(?, gid)"
_BUSY_TIMEOUT_S = 10.0


class DamagedIndexError(Exception):
    """The file is not an index of this version and identity."""


class Transactions:
    """The connection that writes. Every method is one transaction and runs in one thread at a time."""

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path = path
        new = not path.exists()
        if new:
            path.touch(mode=0o600)
        try:
            self._db = connect(path)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = OFF")
            if new:
                self._db.executescript(SCHEMA)
                self._db.execute("INSERT INTO meta VALUES ('identity', ?)", (json.dumps(identity),))
            self._check(identity)
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:  # what is kept there may be no JSON
            with contextlib.suppress(AttributeError):  # it was not even opened
                self._db.close()
            raise DamagedIndexError(str(error)) from error

    def _check(self, identity: Mapping[str, str]) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            raise DamagedIndexError(f"index version {version}, not {SCHEMA_VERSION}")
        self.totals()
        row = self._db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        if row is None or json.loads(row[0]) != dict(identity):
            raise DamagedIndexError("index of another bucket")

    def totals(self) -> tuple[int, int]:
        """Files, and their bytes."""
        files, size = self._db.execute("SELECT files, bytes FROM total").fetchone()
        return files, size

    def newest(self) -> int:
        """The largest inode number that was ever given."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'node'").fetchone()
        return ROOT_INO if row is None else int(row[0])

    def count_from(self, newest: int) -> None:
        """Give out no number up to `newest`."""
        with self._transaction():
            self._db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'node'", (newest,))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Applied]:
        """All or nothing; the totals follow what the body counts in the value it is given."""
        applied = Applied()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield applied
            if applied.objects or applied.bytes:
                self._db.execute(
                    "UPDATE total SET files = files + ?, bytes = bytes + ?", (applied.objects, applied.bytes)
                )
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # where the disk fails, SQLite has rolled it back already
                self._db.execute("ROLLBACK")
            raise

    def apply_page(self, facts: PageFacts, newer: Newer, page_ns: int, began_ns: int) -> Applied:
        """Make slices true, and mark the directories that they complete; see Index.apply_page."""
        inos = {"": ROOT_INO}
        with self._transaction() as applied:
            for piece in facts.slices:
                create = bool(piece.entries)
                ino = self._directory(piece.directory, inos, create=create, is_held=newer.is_held)
                if ino is not None:
                    self._apply_slice(ino, piece, newer, page_ns, applied)
            for directory in facts.completed:
                ino = self._directory(directory, inos, create=False)
                self._db.execute("UPDATE node SET listed_ns = ? WHERE ino = ?", (began_ns, ino))
        return applied

    def apply_names(
        self,
        parent: int,
        names: Sequence[str],
        entries: Sequence[Entry],
        newer: Newer,
        now_ns: int,
        directory: str,
    ) -> Applied:
        """Make single names true; see Index.apply_names. `directory` is the path of `parent`."""
        with self._transaction() as applied:
            if self._db.execute("SELECT 1 FROM node WHERE ino = ?", (parent,)).fetchone() is None:
                return applied
            for name in names:
                found = [entry for entry in entries if entry.name == name]
                # Of the rows, `only` looks at this one name; the slice must cover it, also where it is a directory.
                piece = Slice(directory, name[:-1], None, found)
                self._apply_slice(parent, piece, newer, now_ns, applied, only=name)
        return applied

    def put_entry(self, parent: int, entry: Entry, now_ns: int, posix: Posix) -> tuple[Node, Applied]:
        """The entry is so now; see Index.put_entry."""
        with self._transaction() as applied:
            before = self._row(parent, entry.name)
            if before is None:
                ino = self._insert(parent, entry, now_ns, applied)
            else:
                ino = before.ino
                applied.bytes += 0 if entry.is_dir else entry.size - before.size
                self._db.execute(
                    "UPDATE node SET size = ?, mtime_ns = ?, etag = ?, checked_ns = ? WHERE ino = ?",
                    (entry.size, entry.mtime_ns, entry.etag, now_ns, ino),
                )
            if posix != UNKNOWN:
                self._db.execute(f"UPDATE node SET {_DESCRIBE} WHERE ino = ?", (posix.mode, posix.uid, posix.gid, ino))
            if entry.is_dir and before is None:  # a directory of our own making is empty, and known to be
                self._db.execute("UPDATE node SET listed_ns = ? WHERE ino = ?", (now_ns, ino))
            node = self._row(parent, entry.name)
        assert node is not None
        return node, applied

    def describe(self, ino: int, posix: Posix) -> Node | None:
        """What `posix` knows is so of this row; see Index.describe."""
        with self._transaction():
            self._db.execute(
                f"UPDATE node SET mtime_ns = coalesce(?, mtime_ns), {_DESCRIBE} WHERE ino = ?",
                (posix.mtime_ns, posix.mode, posix.uid, posix.gid, ino),
            )
            row = self._db.execute(f"SELECT {COLUMNS} FROM node WHERE ino = ?", (ino,)).fetchone()
        return None if row is None else node_of(row)

    def arrived(self, ino: int, etag: str, now_ns: int) -> Node | None:
        """The bucket has the inode as version `etag`; see Index.arrived."""
        with self._transaction():
            self._db.execute("UPDATE node SET etag = ?, checked_ns = ? WHERE ino = ?", (etag, now_ns, ino))
            row = self._db.execute(f"SELECT {COLUMNS} FROM node WHERE ino = ?", (ino,)).fetchone()
        return None if row is None else node_of(row)

    def remove_entry(self, parent: int, name: str) -> Applied:
        """The entry, and all below it, is gone."""
        with self._transaction() as applied:
            self._remove(parent, name, applied)
        return applied

    def move_entry(
        self, node: Node, parent: int, entry: Entry, now_ns: int, below: Mapping[str, str]
    ) -> tuple[Node, Applied]:
        """The row becomes `entry` in `parent`; see Index.move_entry."""
        with self._transaction() as applied:
            self._remove(parent, entry.name, applied)
            self._db.execute(
                "UPDATE node SET parent = ?, entry = ?, size = ?, mtime_ns = ?, etag = ?, storage_class = ?,"
                " checked_ns = ? WHERE ino = ?",
                (parent, *entry, now_ns, node.ino),
            )
            inos = {"": node.ino}
            for path, etag in below.items():
                above, name = _split(path)
                self._db.execute(
                    "UPDATE node SET etag = ?, checked_ns = ? WHERE parent = ? AND entry = ?",
                    (etag, now_ns, self._directory(above, inos, create=False), name),
                )
            moved = self._row(parent, entry.name)
        if moved is None:  # the index was lost meanwhile
            raise StaleInodeError(f"inode {node.ino}")
        return moved, applied

    def remove_local(self) -> Applied:
        """Files that were only here are gone; or they are in the bucket, and a kill kept that from being noted: their
        directories are not known to be complete."""
        with self._transaction() as applied:
            rows = self._db.execute(f"SELECT parent, entry FROM node WHERE etag = '{LOCAL_ETAG}'").fetchall()
            for parent, entry in rows:
                self._remove(parent, entry, applied)
                self._db.execute("UPDATE node SET listed_ns = NULL WHERE ino = ?", (parent,))
        return applied

    def restore(self, made: Iterable[Row], gone: Iterable[str]) -> Applied:
        """Paths that are only here, and paths that are only in the bucket; see Index.restore."""
        inos = {"": ROOT_INO}
        with self._transaction() as applied:
            for path in gone:
                above, name = _split(path)
                parent = self._directory(above, inos, create=False)
                if parent is not None:
                    self._remove(parent, name, applied)
            inos = {"": ROOT_INO}
            for path, size, mtime_ns, posix in made:
                above, name = _split(path)
                parent = self._directory(above, inos, create=True)
                assert parent is not None
                known = self._row(parent, name)
                if known is None:
                    etag = "" if name.endswith("/") else LOCAL_ETAG
                    self._insert(parent, Entry(name, size, mtime_ns, etag), 0, applied)
                elif not name.endswith("/"):
                    applied.bytes += size - known.size
                    self._db.execute(
                        "UPDATE node SET size = ?, mtime_ns = ?, etag = ? WHERE ino = ?",
                        (size, mtime_ns, LOCAL_ETAG, known.ino),
                    )
                self._db.execute(
                    f"UPDATE node SET {_DESCRIBE} WHERE parent = ? AND entry = ?",
                    (posix.mode, posix.uid, posix.gid, parent, name),
                )
        return applied

    def set_meta(self, key: str, value: str) -> None:
        """Remember a value."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # -- inside a transaction -----------------------------------------------------------------------------------

    def _apply_slice(
        self,
        ino: int,
        piece: Slice,
        newer: Newer,
        now_ns: int,
        applied: Applied,
        only: str | None = None,
    ) -> None:
        known = self._known(ino, piece, only)
        difference = diff(known, piece)
        local = {name for name in known if known[name][0] == LOCAL_ETAG}

        def decided(name: str) -> bool:
            return name not in local and not newer.knows(ino, piece.directory, name)

        for name in difference.removed:
            if decided(name):
                self._remove(ino, name, applied, newer=newer, directory=piece.directory)
        for entry in difference.changed:
            if decided(entry.name):
                self._remove(ino, entry.name, applied, newer=newer, directory=piece.directory)
                self._insert(ino, entry, now_ns, applied)
        fresh = [entry for entry in difference.added if decided(entry.name)]
        self._insert_many(ino, fresh, now_ns, applied)
        if only is not None:
            self._db.execute("UPDATE node SET checked_ns = ? WHERE parent = ? AND entry = ?", (now_ns, ino, only))

    def _known(self, ino: int, piece: Slice, only: str | None) -> dict[str, tuple[str, int]]:
        """The rows that the slice could touch: what it covers, and below that what it names."""
        if only is not None:
            rows = self._db.execute("SELECT entry, etag, size FROM node WHERE parent = ? AND entry = ?", (ino, only))
        else:
            first = min((piece.after, *(entry.name for entry in piece.entries[:1])))
            rows = self._db.execute(
                "SELECT entry, etag, size FROM node WHERE parent = ? AND entry >= ? AND entry <= ?",
                (ino, first, piece.upto if piece.upto is not None else "\U0010ffff"),
            )
        return {entry: (etag, size) for entry, etag, size in rows}

    def _directory(
        self, path: str, inos: dict[str, int], *, create: bool, is_held: Callable[[str], bool] = lambda _path: False
    ) -> int | None:
        """The inode of directory `path`, made with all above it if need be and allowed. One that is held was removed
        here, and is not made."""
        ino = inos.get(path)
        if ino is None:
            above, name = _split(path)
            parent = self._directory(above, inos, create=create, is_held=is_held)
            if parent is None:
                return None
            row = self._db.execute("SELECT ino FROM node WHERE parent = ? AND entry = ?", (parent, name)).fetchone()
            if row is not None:
                ino = row[0]
            elif create and not is_held(path):
                ino = self._insert(parent, Entry(name), 0, Applied())
            else:
                return None
            inos[path] = ino
        return ino

    def _insert(self, parent: int, entry: Entry, now_ns: int, applied: Applied) -> int:
        """A new row with a number never used before: a changed object is a new inode, so its old pages die with
        the old one and no page ever holds two versions."""
        cursor = self._db.execute(_INSERT, (parent, *entry, now_ns))
        self._note_added(parent, entry, applied)
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _insert_many(self, parent: int, entries: list[Entry], now_ns: int, applied: Applied) -> None:
        self._db.executemany(_INSERT, [(parent, *entry, now_ns) for entry in entries])
        for entry in entries:
            self._note_added(parent, entry, applied)

    @staticmethod
    def _note_added(parent: int, entry: Entry, applied: Applied) -> None:
        applied.changes.append(Change(parent, entry.name.removesuffix("/"), 0))
        if entry.is_dir:
            applied.directories += 1
        else:
            applied.objects += 1
            applied.bytes += entry.size

    def _remove(
        self, parent: int, name: str, applied: Applied, *, newer: Newer = _NOTHING_NEWER, directory: str = ""
    ) -> None:
        """Drop the row and everything below it, unless something below is being written here, or is `newer` than what
        tells so. `directory` is the path of `parent`."""
        node = self._row(parent, name)
        if node is None:
            return
        if name.endswith("/"):
            self._remove_below(node.ino, applied, newer, directory + name)
            if self._db.execute("SELECT 1 FROM node WHERE parent = ? LIMIT 1", (node.ino,)).fetchone():
                return
            applied.directories -= 1
        else:
            applied.objects -= 1
            applied.bytes -= node.size
        self._db.execute("DELETE FROM node WHERE ino = ?", (node.ino,))
        applied.changes.append(Change(parent, name.removesuffix("/"), node.ino))

    def _remove_below(self, ino: int, applied: Applied, newer: Newer, path: str) -> None:
        rows = self._db.execute("SELECT entry, etag FROM node WHERE parent = ?", (ino,)).fetchall()
        for entry, etag in rows:
            if etag != LOCAL_ETAG and not newer.knows(ino, path, entry):
                self._remove(ino, entry, applied, newer=newer, directory=path)

    def _row(self, parent: int, name: str) -> Node | None:
        row = self._db.execute(f"SELECT {COLUMNS} FROM node WHERE parent = ? AND entry = ?", (parent, name)).fetchone()
        node = None if row is None else node_of(row)
        if node is not None and (node.parent, node.entry) != (parent, name):
            raise sqlite3.DatabaseError("a row is not what its index says")
        return node


_TYPES = (int, int, str, int, int, str, str, int)


def node_of(row: Sequence[Any]) -> Node:
    """The row as a node. sqlite3.DatabaseError: it holds what nobody writes, so the file is damaged."""
    if tuple(map(type, row[:8])) != _TYPES or row[3] < 0:
        raise sqlite3.DatabaseError("a row holds what nobody writes")
    return Node(*row)


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the index file."""
    # One connection is used by one thread at a time; which thread that is changes. No other process uses the file
    # (index.home): so nothing of it need be mapped, and what is done to it is an error and not SIGBUS.
    db = sqlite3.connect(
        f"file:{quote(os.fspath(path))}?vfs=unix-excl",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_BUSY_TIMEOUT_S,
    )
    try:
        db.execute("PRAGMA case_sensitive_like = 1")
    except BaseException:
        db.close()
        raise
    return db


def _split(path: str) -> tuple[str, str]:
    """`a/b/` is `b/` in `a/`."""
    cut = path.rfind("/", 0, len(path) - 1) + 1
    return path[:cut], path[cut:]
