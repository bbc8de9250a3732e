"""The index's file is damaged, cut, removed, full or sick: what was asked is answered, and a listing makes it true.

LAZYFS_SEED chooses where damage falls.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from lazyfs.core.errors import IndexTroubleError
from lazyfs.core.listing import Entry
from lazyfs.core.types import ROOT_INO, ObjectInfo
from lazyfs.index import leaving
from lazyfs.index.base import LOCAL_ETAG
from lazyfs.index.database import MAX_MOVES, Index, open_index
from tests.campaign import SEED, times
from tests.index.test_index import IDENTITY, apply_keys, child, info, tree

warns = pytest.mark.expect_warnings
KEYS = [f"d{number % 7}/{number:04}" for number in range(400)]


def truth(etag: str = "e1") -> list[ObjectInfo]:
    return [info(key, etag, size=number) for number, key in enumerate(KEYS)]


def seen(index: Index, ino: int = ROOT_INO, path: str = "") -> dict[str, tuple[str, int]]:
    """ETag and size of every file that can be walked to."""
    found = {}
    for node in index.children(ino, limit=1000):
        if node.entry.endswith("/"):
            found |= seen(index, node.ino, path + node.entry)
        else:
            assert index.child(ino, node.name) in (node, None), "a name leads to another file"
            found[path + node.entry] = (node.etag, node.size)
    return found


def expected(etag: str = "e1") -> dict[str, str]:
    return dict.fromkeys(KEYS, etag) | {f"d{number}/": "/" for number in range(7)}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def shelter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an index goes that cannot stay."""
    path = tmp_path / "shelter"
    path.mkdir()
    monkeypatch.setattr(leaving, "refuges", lambda: iter([path]))
    return path


def fill(directory: Path) -> None:
    with open(directory / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- the disk -----------------------------------------------------------------------------------------------------


@warns
async def test_an_index_whose_disk_is_full_goes_on_elsewhere_with_all_that_it_knew(
    disk: Path, shelter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = disk / "index.db"
    with contextlib.closing(Index(path, IDENTITY)) as index:
        await apply_keys(index, *truth())
        numbers = {key: child(index, key).ino for key in KEYS}
        fill(disk)
        await apply_keys(index, *truth(), info("new"))
        assert tree(index) == expected() | {"new": "e1"}
        assert numbers == {key: child(index, key).ino for key in KEYS}
        assert child(index, "new").ino > max(numbers.values())
        assert index.file.parent.parent == shelter
        assert "full" in str(index.trouble)
        assert index.losses == 0
        assert not path.exists(), "the next mount would believe it"
        os.unlink(disk / "ballast")
    assert not list(shelter.iterdir())
    with contextlib.closing(open_index(path, IDENTITY, pytest.fail)) as index:  # it came home
        assert tree(index) == expected() | {"new": "e1"}
    assert len(messages(caplog)) == 1


@warns
async def test_an_index_that_cannot_come_home_leaves_nothing_behind(disk: Path, shelter: Path) -> None:
    with contextlib.closing(Index(disk / "index.db", IDENTITY)) as index:
        await apply_keys(index, *truth())
        fill(disk)
        await apply_keys(index, *truth("e2"))
        fill(disk)
    assert [found.name for found in disk.iterdir()] == ["ballast"]
    assert not list(shelter.iterdir())


@warns
async def test_without_any_room_reading_goes_on_and_writing_is_told(
    disk: Path, shelter: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leaving, "refuges", lambda: iter([shelter / "not there"]))
    with contextlib.closing(Index(disk / "index.db", IDENTITY)) as index:
        await apply_keys(index, *truth())
        fill(disk)
        for _ in range(3):
            with pytest.raises(IndexTroubleError):
                await apply_keys(index, *truth("e2"))
            assert tree(index) == expected()
        os.unlink(disk / "ballast")
        await apply_keys(index, *truth("e2"))
        assert tree(index) == expected("e2")
    assert len(messages(caplog)) == 1


class _Sick:
    """A connection on which some statements fail as on a sick disk."""

    def __init__(self, real: sqlite3.Connection, code: int, random: Random, rate: float) -> None:
        self._real, self._code, self._random, self._rate = real, code, random, rate

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def execute(self, *args: object) -> sqlite3.Cursor:
        self._fail()
        return self._real.execute(*args)  # type: ignore[arg-type]

    def executemany(self, *args: object) -> sqlite3.Cursor:
        self._fail()
        return self._real.executemany(*args)  # type: ignore[arg-type]

    def _fail(self) -> None:
        if self._random.random() < self._rate:
            error = sqlite3.OperationalError("the disk is sick")
            error.sqlite_errorcode = self._code
            raise error


@warns
@pytest.mark.campaign
@pytest.mark.parametrize("part", range(times(1, 60)))
async def test_io_errors_at_random_statements_are_never_an_error_to_who_asks(
    part: int, tmp_path: Path, shelter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    codes = [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_READONLY,
             sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB]  # fmt: skip
    for turn in range(part * 8, part * 8 + 8):
        random = Random(f"{SEED}-{turn}")
        caplog.clear()
        with contextlib.closing(Index(tmp_path / f"{turn}.db", IDENTITY)) as index:
            await apply_keys(index, *truth())
            biggest = max(child(index, key).ino for key in KEYS)
            code = random.choice(codes)
            index._writer._db = _Sick(index._writer._db, code, random, random.choice([0.01, 0.1, 1]))  # type: ignore[assignment]
            if random.random() < 0.5:
                index._read = _Sick(index._read, code, random, random.choice([0.01, 0.1, 1]))  # type: ignore[assignment]
            for number in range(5):
                etag = f"e{number + 2}"
                for key in random.sample(KEYS, 5):
                    above = index.child(ROOT_INO, key.split("/")[0])
                    found = index.child(above.ino, key.split("/")[1]) if above else None
                    assert found is None or found.size == int(key.split("/")[1])
                await apply_keys(index, *truth(etag))
                assert tree(index) == expected(etag)
                assert (index.files, index.bytes) == (400, sum(range(400)))
            assert min(child(index, key).ino for key in KEYS) > biggest, "a number means one version for ever"
        assert len(messages(caplog)) <= 2
    assert not list(shelter.iterdir())


# -- damage -------------------------------------------------------------------------------------------------------


def _flip(path: Path, random: Random) -> None:
    with path.open("r+b") as file:
        for _ in range(random.choice([1, 1, 8, 64])):
            at = random.randrange(max(1, path.stat().st_size))
            file.seek(at)
            was = file.read(1) or b"\0"
            file.seek(at)
            file.write(bytes([was[0] ^ 1 << random.randrange(8)]))


def _overwrite(path: Path, random: Random) -> None:
    with path.open("r+b") as file:
        file.seek(random.randrange(0, path.stat().st_size + 1, 4096))
        file.write(random.randbytes(random.choice([512, 4096, 20_000])))


def _cut(path: Path, random: Random) -> None:
    os.truncate(path, random.choice([0, random.randrange(path.stat().st_size + 1)]))


def _extend(path: Path, random: Random) -> None:
    with path.open("ab") as file:
        file.write(random.randbytes(random.randrange(1, 9000)))


def _remove(path: Path, _random: Random) -> None:
    path.unlink()


def _directory(path: Path, _random: Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "in it").write_text("x")


def _fifo(path: Path, _random: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path, _random: Random) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


HARMS: list[Callable[[Path, Random], None]] = [
    _flip, _flip, _flip, _flip, _overwrite, _overwrite, _cut, _extend, _remove, _directory, _fifo, _link
]  # fmt: skip


@warns
@pytest.mark.campaign
@pytest.mark.parametrize("part", range(times(1, 60)))
async def test_damage_anywhere_while_open_is_healed_by_the_next_listing(
    part: int, tmp_path: Path, shelter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "template.db"
    with contextlib.closing(Index(template, IDENTITY)) as index:
        await apply_keys(index, *truth())
    moved = 0
    for turn in range(part * 30, part * 30 + 30):
        random = Random(f"{SEED}-{turn}")
        caplog.clear()
        path = tmp_path / f"{turn}.db"
        shutil.copy(template, path)
        with contextlib.closing(Index(path, IDENTITY)) as index:
            if random.random() < 0.5:  # something is in the WAL
                await index.put_entry(ROOT_INO, Entry("local", 1, 0, LOCAL_ETAG), now_ns=1)
                await index.remove_entry(ROOT_INO, "local")
            files = [file for file in (path, Path(f"{path}-wal")) if file.exists()]
            random.choice(HARMS)(random.choice(files), random)
            for key in random.sample(KEYS, 10):
                above = index.child(ROOT_INO, key.split("/")[0])
                assert above is None or index.children(above.ino, limit=1000) is not None
            for _ in range(4):
                losses = index.losses
                await apply_keys(index, *truth("e2"))
                found = seen(index)
                if index.losses == losses:  # what was found meanwhile is listed again, as a mount does
                    break
            assert found == {key: ("e2", number) for number, key in enumerate(KEYS)}, turn
            moved += index.file != path or index.trouble is not None
            assert index._moves < MAX_MOVES
        assert len(messages(caplog)) <= 2
    assert moved > 0
    assert not list(shelter.iterdir())
