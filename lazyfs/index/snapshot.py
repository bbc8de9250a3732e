"""A copy of the index in one file, so that one node lists the bucket and a thousand start from what it found.

The file is the index's SQLite database without anything of the moment, packed with gzip, whose CRC guards it.

Promises that making one never makes the mount wait, that the file appears whole or not at all, and that what is
installed is an index of exactly this bucket, prefix and version, with the shape that we would have made: else
SnapshotError, and the index that is there is not touched. Never trusts the file: not its length, its schema, its rows
or its clock (`unpack`, `verify`, `_settle_clock`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from lazyfs.core.errors import LazyfsError
from lazyfs.core.posix import GIVES_RIGHTS, MAX_ID
from lazyfs.core.types import ROOT_INO
from lazyfs.index.base import LOCAL_ETAG
from lazyfs.index.transactions import SCHEMA, SCHEMA_VERSION, connect

CHUNK = 1024**2
COMPRESSION = 6
MAX_RATIO = 200
"""What a packed byte may unpack to. Each row has an ETag that hardly packs, so that a real index has a ratio of ten."""
MIN_LIMIT = 1024**2
"""What any file may unpack to: an empty database packs very well."""
_IMPORT_STATE = "unfinished import"
"""Empty once an import has been complete; see index.importer."""

Pause = Callable[[], object]
"""Called between steps in a worker thread; may raise to end the work."""


class SnapshotError(LazyfsError):
    """The file is not a snapshot that this mount can use, or it cannot be made."""


# -- making -------------------------------------------------------------------------------------------------------


def is_complete(db: sqlite3.Connection) -> bool:
    """Whether the index has known the whole bucket at some time."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (_IMPORT_STATE,)).fetchone()
    if row is not None and row[0] == "":
        return True
    unlisted = "SELECT 1 FROM node WHERE listed_ns IS NULL AND (entry LIKE '%/' OR ino = ?) LIMIT 1"
    return db.execute(unlisted, (ROOT_INO,)).fetchone() is None


def pack(index: Path, target: Path, pause: Pause = lambda: None) -> dict[str, int]:
    """Write a snapshot of the index file `index`, which may be in use, to `target`; how much it holds.

    Blocks; for a worker thread. Raises SnapshotError.
    """
    try:
        with contextlib.closing(connect(index)) as db, _workshop(index) as folder:
            db.execute("PRAGMA query_only = 1")
            if not is_complete(db):
                raise SnapshotError("the bucket is not completely listed yet; see lazyfs status")
            copy = folder / "copy.db"
            db.execute("PRAGMA query_only = 0")
            db.execute("VACUUM INTO ?", (str(copy),))  # one read transaction: neither waits for writers nor holds them
            pause()
            files, size = _strip(copy)
            _write_packed(copy, target, pause)
            return {"files": files, "bytes": size, "packed": target.stat().st_size}
    except sqlite3.Error as error:
        raise SnapshotError(f"cannot copy the index: {error}") from error
    except OSError as error:
        raise SnapshotError(f"cannot write {target}: {error.strerror or error}") from error


def _strip(copy: Path) -> tuple[int, int]:
    """Take out what means nothing elsewhere; files and bytes that are left.

    A directory with a file that was being written counts as not listed: the bucket may have another of that name.
    """
    with contextlib.closing(connect(copy)) as db:
        db.execute("BEGIN")
        db.execute(
            "UPDATE node SET listed_ns = NULL WHERE ino IN (SELECT parent FROM node WHERE etag = ?)", (LOCAL_ETAG,)
        )
        db.execute("DELETE FROM node WHERE etag = ?", (LOCAL_ETAG,))
        db.execute(f"UPDATE node SET mode = mode & ~{GIVES_RIGHTS} WHERE mode & {GIVES_RIGHTS}")
        db.execute("DELETE FROM meta WHERE key <> 'identity'")
        db.execute("INSERT INTO meta VALUES (?, '')", (_IMPORT_STATE,))
        files, size = _count(db)
        db.execute("UPDATE total SET files = ?, bytes = ?", (files, size))
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = DELETE")  # all in the one file
    return files, size


def _count(db: sqlite3.Connection) -> tuple[int, int]:
    files, size = db.execute(
        "SELECT count(*), coalesce(sum(size), 0) FROM node WHERE entry NOT LIKE '%/' AND ino <> ?", (ROOT_INO,)
    ).fetchone()
    return files, size


def _write_packed(source: Path, target: Path, pause: Pause) -> None:
    """`target` is, from one moment to the next, what `source` holds, packed, for its owner's eyes only."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(descriptor, "wb") as raw:
            with source.open("rb") as plain, gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as packed:
                while chunk := plain.read(CHUNK):
                    packed.write(chunk)
                    pause()
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


# -- using --------------------------------------------------------------------------------------------------------


def install(
    snapshot: Path, index: Path, identity: Mapping[str, str], *, name: str, pause: Pause = lambda: None
) -> bool:
    """Put the snapshot in place of the index file `index`, which nobody uses, if that is older or not there.

    Whether it did; `name` is what the snapshot is called in messages. Blocks. Raises SnapshotError.
    """
    try:
        with _workshop(index) as folder:
            fresh = folder / "fresh.db"
            unpack(snapshot, fresh, pause)
            taken_ns = verify(fresh, identity)
            _settle_clock(fresh)
            kept_ns = _age_of(index, identity)
            if kept_ns is not None and (taken_ns is None or taken_ns <= kept_ns):
                return False
            for suffix in ("-wal", "-shm"):
                Path(f"{index}{suffix}").unlink(missing_ok=True)
            os.replace(fresh, index)
            return True
    except SnapshotError as error:
        raise SnapshotError(f"cannot use the snapshot {name}: {error}") from None
    except (sqlite3.Error, ValueError) as error:
        raise SnapshotError(f"cannot use the snapshot {name}: it is damaged ({error})") from error
    except OSError as error:
        raise SnapshotError(f"cannot use the snapshot {name}: {error.strerror or error}") from error


def unpack(snapshot: Path, target: Path, pause: Pause = lambda: None) -> None:
    """Unpack a snapshot, as far as it is whole and not absurdly large. Raises SnapshotError, OSError."""
    with snapshot.open("rb") as raw:
        if raw.read(2) != b"\x1f\x8b":
            raise SnapshotError("it is not a snapshot of lazyfs")
        raw.seek(0)
        limit = MIN_LIMIT + MAX_RATIO * os.fstat(raw.fileno()).st_size
        with target.open("xb") as plain, gzip.GzipFile(fileobj=raw) as packed:
            while chunk := _read(packed):
                limit -= len(chunk)
                if limit < 0:
                    raise SnapshotError("it unpacks to more than any snapshot would")
                plain.write(chunk)
                pause()


def _read(packed: gzip.GzipFile) -> bytes:
    try:
        return packed.read(CHUNK)
    except EOFError as error:
        raise SnapshotError("it is cut short") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SnapshotError(f"it is damaged ({error})") from error


def verify(database: Path, identity: Mapping[str, str]) -> int | None:
    """Check that the file is an index as we make them, of `identity`; since when its listing is true.

    Raises SnapshotError, sqlite3.Error, ValueError.
    """
    with contextlib.closing(_untrusted(database)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            raise SnapshotError(f"its index has version {version}, not {SCHEMA_VERSION}")
        if _schema(db) != _our_schema():
            raise SnapshotError("it is not an index of lazyfs")
        damage = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            one_line = " ".join(damage.split())
            raise SnapshotError(f"it is damaged ({one_line})")
        _check_identity(db, identity)
        if db.execute(_ODD_ROWS).fetchone() is not None or not _has_sound_frame(db):
            raise SnapshotError("it holds rows that no listing makes")
        return _listed_since(db)


def _check_identity(db: sqlite3.Connection, identity: Mapping[str, str]) -> None:
    row = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
    theirs = json.loads(row[0]) if row is not None else None
    if not isinstance(theirs, dict):
        raise SnapshotError("it does not say of which bucket it is")
    if theirs != dict(identity):
        raise SnapshotError(f"it is of {_place(theirs)}, not of {_place(identity)}")


def _place(identity: Mapping[str, object]) -> str:
    where = f"{identity.get('bucket')}/{identity.get('prefix') or ''}".rstrip("/")
    return f"{where} on {identity.get('endpoint') or 'AWS'}"


_ODD_ROWS = f"""
SELECT 1 FROM node WHERE ino < 1
    OR typeof(size) <> 'integer' OR size < 0 OR typeof(mtime_ns) <> 'integer' OR typeof(checked_ns) <> 'integer'
    OR typeof(listed_ns) NOT IN ('integer', 'null') OR typeof(etag) <> 'text' OR typeof(storage_class) <> 'text'
    OR typeof(parent) <> 'integer' OR typeof(entry) <> 'text' OR etag = '{LOCAL_ETAG}' OR instr(entry, char(0))
    OR (mode IS NOT NULL AND (typeof(mode) <> 'integer' OR mode & ~{0o177777 & ~GIVES_RIGHTS}))
    OR (uid IS NOT NULL AND (typeof(uid) <> 'integer' OR uid NOT BETWEEN 0 AND {MAX_ID}))
    OR (gid IS NOT NULL AND (typeof(gid) <> 'integer' OR gid NOT BETWEEN 0 AND {MAX_ID}))
    OR (ino <> {ROOT_INO} AND (
        entry IN ('', '/', '.', './', '..', '../') OR instr(substr(entry, 1, length(entry) - 1), '/')))
LIMIT 1
"""


def _has_sound_frame(db: sqlite3.Connection) -> bool:
    """Whether the root is the root and the totals are the rows' own."""
    root = db.execute("SELECT parent, entry FROM node WHERE ino = ?", (ROOT_INO,)).fetchone()
    totals = db.execute("SELECT files, bytes FROM total").fetchall()
    return root == (0, "") and totals == [_count(db)]


def _untrusted(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, isolation_level=None)
    db.execute("PRAGMA trusted_schema = 0")
    db.execute("PRAGMA cell_size_check = 1")
    db.execute("PRAGMA case_sensitive_like = 1")
    return db


def _schema(db: sqlite3.Connection) -> list[tuple[str, str, str | None]]:
    return db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()


def _our_schema() -> list[tuple[str, str, str | None]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return _schema(db)


def _listed_since(db: sqlite3.Connection) -> int | None:
    """Since when, in ns, what the index says of the whole bucket has been seen to be true; None if it never was."""
    found: int | None = db.execute("SELECT min(listed_ns) FROM node").fetchone()[0]
    return found if is_complete(db) else None


def _settle_clock(database: Path) -> None:
    """No fact is from the future: the node that wrote it may have a clock that is ahead, and leases would not end."""
    now_ns = time.time_ns()
    with contextlib.closing(connect(database)) as db:
        db.execute("PRAGMA journal_mode = OFF")  # a copy of our own, thrown away if this fails
        db.execute("UPDATE node SET checked_ns = 0 WHERE checked_ns > ?", (now_ns,))
        db.execute("UPDATE node SET listed_ns = ? WHERE listed_ns > ?", (now_ns, now_ns))


def _age_of(index: Path, identity: Mapping[str, str]) -> int | None:
    """See `_listed_since`, of our own index file; None if it is missing, foreign or damaged.

    Closing it moves what is in its write-ahead log into the file.
    """
    if not index.exists():
        return None
    try:
        with contextlib.closing(connect(index)) as db:
            _check_identity(db, identity)
            return _listed_since(db)
    except (sqlite3.Error, ValueError, SnapshotError):
        return None


# -- the folder where both work -----------------------------------------------------------------------------------


def sweep(index: Path) -> None:
    """Remove what a killed daemon left of its work beside `index`."""
    for left in index.parent.glob(f".{index.name}.snapshot-*"):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _workshop(index: Path) -> Iterator[Path]:
    """A private folder on the index's own disk, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=index.parent, prefix=f".{index.name}.snapshot-") as folder:
        yield Path(folder)
