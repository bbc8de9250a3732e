"""Blocks in a diskcache directory: the only file that says diskcache.

Promises that what `load` returns was stored for exactly that object, version and block: each value has a label with
checksums that its identity goes into. Its files are their owner's alone. Raises what goes wrong with the directory; who
calls it answers for that (`cache.disk`), and that each thread which has used a cache closes it.

Never unpickles: the Disk subclass stores and returns bytes and refuses the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import diskcache
from diskcache.core import DBNAME, EVICTION_POLICY, MODE_BINARY, MODE_RAW

from lazyfs.cache.blockfile import RUN_BLOCKS, Loaded, StoredRun, label, read_label
from lazyfs.cache.directio import DirectFiles, aligned, read_at
from lazyfs.core.ranges import plan_runs
from lazyfs.core.residency import runs_of
from lazyfs.core.types import Buffer, ObjectId

DATABASE: str = DBNAME
"""The name of the file that says what the directory holds."""
Locked = diskcache.Timeout
"""Another process held the lock for too long."""
_INLINE_BYTES = 4096
_ASKED_AT_ONCE = 500
"""Keys in one query: SQLite takes 999 in its oldest builds."""
_DELETED_AT_ONCE = 256
"""Values in one transaction: other mounts wait for its lock, a few milliseconds."""
_WAY_VALUES = 8
"""Some MiB, which is more than a transaction that deletes needs."""
_LOCK_TIMEOUT_S = 2.0
_OPEN_TIMEOUT_S = 0.2
_FILENAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{30}\.val")
PINNED_S = 1e11
"""Added to the time at which a value was stored: a pin. What is so young is never the oldest, and the policy stops
before it, also in the eyes of an older lazyfs that shares the directory; unless that has nothing else to drop."""
_POLICY = "least-recently-stored-unpinned"
EVICTION_POLICY[_POLICY] = {
    **EVICTION_POLICY["least-recently-stored"],
    "cull": f"SELECT {{fields}} FROM Cache WHERE store_time < {PINNED_S} ORDER BY store_time LIMIT ?",  # noqa: S608 - ours
}
_LAYOUT = b"3\0"
"""Goes into every key, so that what an earlier lazyfs stored otherwise is not found, and gives way in time."""


class _BytesDisk(diskcache.Disk):  # type: ignore[misc]  # the base is untyped
    """Stores buffers as one file, without joining them; knows no other type.

    What the database says is not believed: a mode that is not ours is refused, and so is a file name that was not made
    here, or a planted row could have any file read or removed.

    Files lie in 256 directories that stay, where diskcache makes and removes two for nearly each of them: those cost
    more than the files.
    """

    def __init__(self, directory: str, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self._files = DirectFiles(directory)

    def filename(self, key: Any = None, value: Any = None) -> tuple[str, str]:
        name = secrets.token_hex(16)
        filename = f"{name[:2]}/{name[2:]}.val"
        return filename, os.path.join(self._directory, filename)

    def store(self, value: list[Buffer], read: bool, key: Any = None) -> tuple[int, int, str | None, Any]:
        size = sum(map(len, value))
        if size < _INLINE_BYTES:
            return 0, MODE_RAW, None, sqlite3.Binary(b"".join(value))
        filename, path = self.filename()
        try:
            size = self._files.write(path, value)
        except BaseException:
            self.remove(filename)  # half a file would take the room that is missing
            raise
        return size, MODE_BINARY, filename, None

    def fetch(self, mode: int, filename: str, value: Any, read: bool) -> bytes | BinaryIO:
        """The value, or the open file that holds it."""
        if mode == MODE_RAW and isinstance(value, bytes):
            return value
        if mode == MODE_BINARY and _FILENAME.fullmatch(filename):
            return self._files.open(os.path.join(self._directory, filename))
        raise ValueError("not a block")

    def remove(self, file_path: str) -> None:
        if _FILENAME.fullmatch(file_path):
            with contextlib.suppress(OSError):
                os.remove(os.path.join(self._directory, file_path))

    def put(self, key: bytes) -> tuple[Any, bool]:
        return sqlite3.Binary(key), True

    def get(self, key: Any, raw: bool) -> bytes:
        if not raw:
            raise ValueError("not a block")
        return bytes(key)


class Held(NamedTuple):
    """Which blocks of an object are here, when the newest of them was stored, in seconds since the epoch, and which are
    pinned."""

    runs: list[range]
    stored_s: float | None
    pinned: list[range]


@dataclass(frozen=True, slots=True)
class _Value:
    """A stored run, the first block of which is `first`: an inline row's bytes or an open file."""

    first: int
    run: StoredRun
    content: bytes | BinaryIO

    def read(self, blocks: range, memory: memoryview, at: int) -> bool:
        """Read `blocks`, counted from `first`, into `memory` from `at` on; whether they are whole."""
        start, stop = self.run.start(blocks.start), self.run.start(blocks.stop)
        if isinstance(self.content, bytes):
            data = self.content[start:stop]
            memory[at : at + len(data)] = data
        else:
            try:
                if not read_at(self.content, start, memory, at, stop - start):
                    return False
            except OSError:  # one bad sector, or no file at all: the rest of the cache may be well
                return False
        return self.run.is_whole(blocks, memory[at : at + stop - start])


class BlockCache(diskcache.Cache):  # type: ignore[misc]  # the base is untyped
    """Blocks by scope, version and index, in values of up to RUN_BLOCKS neighbours. Each thread has a connection."""

    def __init__(self, directory: Path) -> None:
        """Open or create it. Locked, and whatever is wrong with the directory."""
        _check_unlocked(directory / DATABASE)
        try:
            super().__init__(
                os.fspath(directory),
                timeout=_LOCK_TIMEOUT_S,
                disk=_BytesDisk,
                cull_limit=0,  # who stores makes room first
                # "stored" needs no write on a read; docs/decisions/003-the-ssd-tier.md
                eviction_policy=_POLICY,
                disk_min_file_size=_INLINE_BYTES,
                # Where a mapped file was cut, or its disk fails, there is no error: SIGBUS ends the process.
                sqlite_mmap_size=0,
            )
        except BaseException:
            self.close()
            raise

    def load(self, scope: str, oid: ObjectId, blocks: range) -> tuple[Loaded, list[int]]:
        """Those of `blocks` that are here and whole, and the first blocks of values that were damaged and dropped."""
        damaged: list[int] = []
        with contextlib.ExitStack() as files:

            def value(first: int) -> _Value | None:
                return self._value(_identity(scope, oid, first), first, files, damaged)

            held = list(_holding(blocks, value))
            memory = aligned(sum(one.run.start(part.stop) - one.run.start(part.start) for one, part in held))
            found: dict[int, Buffer] = {}
            at = 0
            for one, part in held:
                if not one.read(part, memory, at):
                    damaged.append(one.first)
                    continue
                for block in part:
                    size = one.run.start(block + 1) - one.run.start(block)
                    found[one.first + block] = memory[at : at + size].toreadonly()
                    at += size
        for first in damaged:
            self.delete(_key(_identity(scope, oid, first)))
        return Loaded(found, memory[:at].toreadonly()), damaged

    def missing(self, scope: str, oid: ObjectId, blocks: range) -> list[int]:
        """Those of `blocks` that are not here; what is damaged counts as here until it is loaded."""
        with contextlib.ExitStack() as files:

            def value(first: int) -> _Value | None:
                return self._value(_identity(scope, oid, first), first, files, [])

            held = {one.first + block for one, part in _holding(blocks, value) for block in part}
        return [block for block in blocks if block not in held]

    def survey(self, scope: str, oid: ObjectId, count: int) -> Held:
        """Which of the object's blocks 0 to `count` are here, without opening a file: what is damaged, or was removed
        by hand, counts as here until it is loaded."""
        rows = self._rows(scope, oid, count)
        held = sorted({block for run, _ in rows for block in run})
        pinned = sorted({block for run, stored_s in rows for block in run if stored_s >= PINNED_S})
        return Held(runs_of(held), max((stored_s % PINNED_S for _, stored_s in rows), default=None), runs_of(pinned))

    def forget(self, scope: str, oid: ObjectId, count: int) -> None:
        """Drop the object's blocks 0 to `count`; others may use the directory between two transactions."""
        firsts = [run.start for run, _ in self._rows(scope, oid, count)]
        for start in range(0, len(firsts), _DELETED_AT_ONCE):
            with self.transact():
                for first in firsts[start : start + _DELETED_AT_ONCE]:
                    self.delete(_key(_identity(scope, oid, first)))

    def pin(self, scope: str, oid: ObjectId, count: int, *, limit_bytes: int) -> bool:
        """Never evict the object's blocks 0 to `count` that are here; False, and nothing done, if more than
        `limit_bytes` of the directory would be pinned then. They still go with `forget`, or when they are damaged."""
        fresh = [run.start for run, stored_s in self._rows(scope, oid, count) if stored_s < PINNED_S]
        with self.transact():
            for first in fresh:
                self._restamp(scope, oid, first, PINNED_S)
            has_room = not fresh or self.pinned_bytes() <= limit_bytes
            for first in () if has_room else fresh:
                self._restamp(scope, oid, first, -PINNED_S)
        return has_room

    def unpin(self, scope: str, oid: ObjectId, count: int) -> None:
        """The object's blocks 0 to `count` are as those that nobody pinned."""
        pinned = [run.start for run, stored_s in self._rows(scope, oid, count) if stored_s >= PINNED_S]
        with self.transact():
            for first in pinned:
                self._restamp(scope, oid, first, -PINNED_S)

    def pinned_bytes(self) -> int:
        """Of the whole directory."""
        query = "SELECT coalesce(sum(max(size, coalesce(length(value), 0))), 0) FROM Cache WHERE store_time >= ?"
        return int(self._sql(query, (PINNED_S,)).fetchone()[0])

    def _restamp(self, scope: str, oid: ObjectId, first: int, by_s: float) -> None:
        key = sqlite3.Binary(_key(_identity(scope, oid, first)))
        self._sql("UPDATE Cache SET store_time = store_time + ? WHERE key = ? AND raw = 1", (by_s, key))

    def _rows(self, scope: str, oid: ObjectId, count: int) -> list[tuple[range, float]]:
        """Stored runs, and when each was stored."""
        found = []
        for start in range(0, count, _ASKED_AT_ONCE):
            identities = {
                _key(identity): (first, identity)
                for first in range(start, min(start + _ASKED_AT_ONCE, count))
                for identity in (_identity(scope, oid, first),)
            }
            marks = ",".join("?" * len(identities))
            query = f"SELECT key, tag, store_time FROM Cache WHERE raw = 1 AND key IN ({marks})"  # noqa: S608 - marks only
            for key, tag, stored_s in self._sql(query, [sqlite3.Binary(key) for key in identities]).fetchall():
                first, identity = identities[bytes(key)]
                run = read_label(identity, tag)
                if run is not None:
                    found.append((range(first, first + len(run)), float(stored_s)))
        return found

    def store(self, scope: str, batch: Iterable[tuple[ObjectId, Mapping[int, Buffer]]]) -> None:
        """Store blocks (ascending) in one transaction, up to what fails: what was stored before that stays."""
        failure: Exception | None = None
        with self.transact():
            try:
                for oid, blocks in batch:
                    for run in plan_runs(blocks, RUN_BLOCKS):
                        identity = _identity(scope, oid, run.start)
                        pieces = [blocks[block] for block in run]
                        self.set(_key(identity), pieces, tag=label(identity, pieces))
            except Exception as error:  # noqa: BLE001 - raised below, after the commit
                failure = error
        if failure is not None:
            raise failure

    def shrink(self, size: int) -> None:
        """Have no more than `size` bytes, least recently stored going first."""
        self.size_limit = size
        self.cull()

    def roll_back(self) -> None:
        """End a transaction of this thread that failed to end: it would hold the lock against everybody."""
        with contextlib.suppress(sqlite3.Error):
            self._con.rollback()

    def make_way(self) -> None:
        """Remove a few values, whichever, without writing anything: their rows are misses, and go when there is room
        for that."""
        for path in itertools.islice(Path(self.directory).glob("??/*.val"), _WAY_VALUES):
            if _FILENAME.fullmatch(f"{path.parent.name}/{path.name}"):
                path.unlink(missing_ok=True)

    def _value(self, identity: bytes, first: int, files: contextlib.ExitStack, damaged: list[int]) -> _Value | None:
        """The value stored under `identity`; its file is closed with `files`."""
        try:
            content, found = self.get(_key(identity), read=True, tag=True)
        except (ValueError, TypeError):  # a row that is not ours
            content, found = b"", None
        if content is None:
            return None
        if not isinstance(content, bytes):
            files.enter_context(content)
        run = read_label(identity, found)
        if run is None:
            damaged.append(first)
            return None
        return _Value(first, run, content)


def _check_unlocked(database: Path) -> None:
    """Locked, where diskcache would wait a minute: a damaged header wants its mode set again, which cannot be as long
    as anybody has the file open."""
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=_OPEN_TIMEOUT_S)) as db:
            db.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise Locked(str(error)) from error


def _holding(blocks: range, value: Callable[[int], _Value | None]) -> Iterator[tuple[_Value, range]]:
    """The values that hold some of `blocks`, and which of theirs, counted from their first; `value` looks up the one
    that begins with a block. What begins at a multiple of RUN_BLOCKS may hold the blocks after it."""
    for first in range(blocks.start - blocks.start % RUN_BLOCKS, blocks.stop, RUN_BLOCKS):
        wanted = range(max(first, blocks.start), min(first + RUN_BLOCKS, blocks.stop))
        found = value(first)
        end = first + (len(found.run) if found is not None else 1)
        if found is not None and end > wanted.start:
            yield found, range(wanted.start - first, min(end, wanted.stop) - first)
        for block in range(max(wanted.start, end), wanted.stop):
            found = value(block)
            if found is not None:
                yield found, range(1)


def _identity(scope: str, oid: ObjectId, first: int) -> bytes:
    return f"{scope}\0{oid.key}\0{oid.etag}\0{first}".encode()


def _key(identity: bytes) -> bytes:
    return blake2b(_LAYOUT + identity, digest_size=20).digest()
