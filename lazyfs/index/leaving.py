"""Where the index goes when its file cannot be used any more: the disk is full, read-only or sick, the file damaged.

Promises that what can still be read comes along, that no inode number is given a second time, and that what is left
behind is not taken for the truth by the next mount. The file is a cache, so a new one may begin empty.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from lazyfs.index.transactions import DamagedIndexError, Transactions, connect

Failure: TypeAlias = sqlite3.DatabaseError | UnicodeDecodeError
"""What SQLite has to say; where its message quotes what is damaged, that may be no text."""
FAILURES = (sqlite3.DatabaseError, UnicodeDecodeError)
FURTHER = 2**40
"""So far beyond the numbers of a lost index those of the next begin: it cannot say which was its last."""
_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_NOMEM}
_SICK_DISK = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
}
_PAGES_A_STEP = 4096


def is_of_the_file(error: Failure, path: Path) -> bool:
    """Whether it is the fault of the file at `path`, and another would not have it."""
    if isinstance(error, sqlite3.ProgrammingError) or _code(error) in _PASSING:
        return False
    # What contradicts a constraint is a mistake of ours, unless index and table contradict each other.
    return not isinstance(error, sqlite3.IntegrityError) or not _is_sound(path)


def _is_sound(path: Path) -> bool:
    try:
        with contextlib.closing(connect(path)) as db:
            found = db.execute("PRAGMA integrity_check(1)").fetchone()
    except FAILURES:
        return False
    return bool(found[0] == "ok")


def is_of_the_disk(error: Failure) -> bool:
    """Whether the disk is in trouble, and what is in the file may well be right."""
    return _code(error) in _SICK_DISK


def _code(error: Failure) -> int:
    # Text that is no UTF-8 is found by Python, which gives no code.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def refuges() -> Iterator[Path]:
    """Directories, perhaps on other disks, that may take the index; in the order to try."""
    yield Path(tempfile.gettempdir())
    yield Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it


def move(
    path: Path, identity: Mapping[str, str], error: Failure, *, newest: int, stack: contextlib.ExitStack
) -> tuple[Transactions, bool]:
    """The index that goes on for the one at `path`, and whether that is empty. It and its directory, if it is one of
    our making, are closed with `stack`. OSError, DamagedIndexError: there is no place for one.

    `newest` is the largest number that may have been given out.
    """
    if not is_of_the_disk(error):
        set_aside(path)
        with contextlib.suppress(OSError, DamagedIndexError):
            return _begun(path, identity, newest, stack), True
    trouble: Exception = error
    for place in refuges():
        with contextlib.ExitStack() as attempt:
            try:
                made = Path(attempt.enter_context(tempfile.TemporaryDirectory(prefix="lazyfs-", dir=place)))
                found = _come_along(path, made, identity, error, attempt)
                writer = found or _begun(made / "empty.db", identity, newest, attempt)
            except (OSError, DamagedIndexError) as failure:
                trouble = failure
                continue
            stack.enter_context(attempt.pop_all())
            for suffix in ("", "-wal"):  # room for others; and it grows older than what we know
                with contextlib.suppress(OSError):
                    os.unlink(f"{path}{suffix}")
            return writer, found is None
    raise trouble


def _come_along(
    path: Path, made: Path, identity: Mapping[str, str], error: Failure, stack: contextlib.ExitStack
) -> Transactions | None:
    """A copy in directory `made` of the index at `path`; None if that cannot be read, or the copy has no room."""
    if is_of_the_disk(error) and copied(path, made / "copy.db"):
        with contextlib.suppress(DamagedIndexError):  # it was cut
            return _begun(made / "copy.db", identity, 0, stack)
    for left in made.iterdir():  # the empty one may still have room
        left.unlink()
    return None


def _begun(path: Path, identity: Mapping[str, str], newest: int, stack: contextlib.ExitStack) -> Transactions:
    """The index at `path`, which may be new; its numbers go on after `newest`."""
    writer = Transactions(path, identity)
    stack.callback(writer.close)
    try:
        if newest:
            writer.count_from(newest)
    except FAILURES as error:
        raise DamagedIndexError(str(error)) from error
    return writer


def copied(source: Path, target: Path) -> bool:
    """Whether `target`, which is new, holds all that the index `source` does, which may be in use."""
    try:
        with contextlib.closing(connect(source)) as old, contextlib.closing(connect(target)) as new:
            old.backup(new, pages=_PAGES_A_STEP)
    except FAILURES:
        return False
    return True


def bring_home(source: Path, home: Path) -> None:
    """Have `source` at `home` for the next mount, if that can be; else nothing is there, if that can be. Never raises.

    Nobody uses either.
    """
    draft = home.with_suffix(".new")
    came = copied(source, draft)
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            os.unlink(f"{home}{suffix}")
    with contextlib.suppress(OSError):
        if came:
            os.replace(draft, home)
        else:
            os.unlink(draft)


def set_aside(path: Path) -> None:
    """There is nothing at `path`, if that can be; what was is beside it."""
    with contextlib.suppress(OSError):
        os.replace(path, path.with_suffix(".damaged"))
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(OSError):
            os.unlink(f"{path}{suffix}")
