"""The journal of write-back: changes that a program was told are done, on disk until the bucket has them.

Promises that what `record` returned from survives kill -9 and a power cut: each transaction is synced. Unlike the index
this file is no cache; one that cannot be read, or is not as it was written, is an error, never set aside.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import trio

from lazyfs.core.changes import Change, decode_change, encode_change
from lazyfs.core.errors import NoRoomError, SpoolError, StartupError
from lazyfs.index.transactions import connect

VERSION = 1
_SCHEMA = f"""
BEGIN;
CREATE TABLE change (number INTEGER PRIMARY KEY AUTOINCREMENT, record TEXT NOT NULL);
PRAGMA user_version = {VERSION};
COMMIT;
"""


class ChangeJournal:
    """Changes in the file at `path`, by number. Owned by the main thread; `close` it."""

    def __init__(self, path: Path) -> None:
        """Open or create it. StartupError."""
        self._path = path
        self._turn = trio.CapacityLimiter(1)
        try:
            path.touch(mode=0o600)
            # One thread at a time uses it; which thread that is changes. See index.transactions of what is not mapped.
            self._db = connect(path)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                if any(path.parent.glob("*.data")):
                    raise StartupError(f"{path} was emptied or removed, and files beside it wait for their upload")
                self._db.executescript(_SCHEMA)
            elif version != VERSION:
                raise StartupError(f"{path} is a write-back journal of version {version}, not {VERSION}")
            self._newest = self._largest()
        except (sqlite3.DatabaseError, ValueError, TypeError, OSError) as error:
            if hasattr(self, "_db"):
                self._db.close()
            raise StartupError(f"the write-back journal {path} cannot be used: {error}") from error

    def load(self) -> list[Change]:
        """What is to be done, in the order of the numbers. StartupError if that cannot be read."""
        changes: list[Change] = []
        try:
            ((damage,),) = self._db.execute("PRAGMA integrity_check(1)").fetchall()
            rows = self._db.execute("SELECT number, record FROM change ORDER BY number").fetchall()
            changes = [decode_change(number, record) for number, record in rows]
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            damage = str(error)
        if damage != "ok":
            raise StartupError(f"the write-back journal {self._path} is damaged: {damage}")
        return changes

    def newest(self) -> int:
        """The largest number that was ever given when this was opened."""
        return self._newest

    def _largest(self) -> int:
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").fetchone()
        return 0 if row is None else int(row[0])

    async def record(self, changes: Sequence[Change], dropped: Iterable[int] = ()) -> None:
        """Durably, all or nothing: `changes` are to be done, or are now so; `dropped` are not to be done any more.
        NoRoomError, SpoolError."""
        rows = [(change.number, encode_change(change)) for change in changes]
        gone = [(number,) for number in dropped]

        def work() -> None:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("DELETE FROM change WHERE number = ?", gone)
                self._db.executemany("INSERT OR REPLACE INTO change VALUES (?, ?)", rows)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # some errors have rolled it back already
                    self._db.execute("ROLLBACK")
                raise

        try:
            # Once begun it is done: whoever waits may be cancelled, and must not leave a transaction half open.
            await trio.to_thread.run_sync(work, limiter=self._turn)
        except sqlite3.DatabaseError as error:
            kind = NoRoomError if error.sqlite_errorcode == sqlite3.SQLITE_FULL else SpoolError
            raise kind(f"write-back journal {self._path}: {error}") from error

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
