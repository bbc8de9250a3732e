"""The SSD tier under damage at random: values and database flipped, cut, exchanged, replaced, removed; failing calls.

LAZYFS_SEED chooses where damage falls.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lazyfs.cache import blockcache
from lazyfs.cache.directio import DirectFiles
from lazyfs.cache.disk import RETRY_S, DiskTier
from lazyfs.core.types import ObjectId
from tests.cache.test_disk import Room, block, got, messages, put, room
from tests.campaign import SEED, times
from tests.index.test_trouble import HARMS

__all__ = ["room"]
pytestmark = [pytest.mark.expect_warnings, pytest.mark.campaign]
OIDS = [ObjectId(f"key-{number}", f"e{number}") for number in range(3)]
BLOCKS = range(8)
PARTS = range(times(1, 60))


def content(number: int, index: int) -> bytes:
    """Small ones lie in the database, others in files."""
    return block(number * 100 + index, 600 if number == 0 else 9_000)


async def fill_with_all(tier: DiskTier) -> None:
    for number, oid in enumerate(OIDS):
        await put(tier, {index: content(number, index) for index in BLOCKS}, oid)


async def check(tier: DiskTier) -> int:
    """Nothing but right bytes; how many blocks."""
    count = 0
    for number, oid in enumerate(OIDS):
        found = await got(tier, oid, BLOCKS)
        for index, data in found.items():
            assert data == content(number, index), (number, index)
        count += len(found)
        await tier.missing([(oid, BLOCKS)])
        await tier.survey([(oid, len(BLOCKS))])
    return count


def _exchange(path: Path, random: Random) -> None:
    other = random.choice(sorted(path.parent.parent.glob("??/*.val")))
    draft = path.with_name("draft")
    path.rename(draft)
    if other != path:
        other.rename(path)
    draft.rename(other)


def _copied_over(path: Path, random: Random) -> None:
    other = random.choice(sorted(path.parent.parent.glob("??/*.val")))
    if other != path and other.is_file() and not other.is_symlink():
        shutil.copy(other, path)


def _linked(path: Path, random: Random) -> None:
    """To a file that holds right bytes, and is not ours."""
    away = path.with_name("treasure")
    path.rename(away)
    path.symlink_to(away)


VALUE_HARMS: list[Callable[[Path, Random], None]] = [*HARMS, _exchange, _copied_over, _linked]


def _database_at(room: Room, random: Random) -> Path | None:
    # Not cache.db-shm: SQLite maps it, as several mounts share the directory.
    found = [path for path in (room.path / "cache.db", room.path / "cache.db-wal") if path.is_file()]
    return random.choice(found) if found else None


def harm(room: Room, random: Random, *, values: float) -> None:
    if room.values() and random.random() < values:
        for path in random.sample(room.values(), min(len(room.values()), random.randrange(1, 4))):
            if path.is_file() and not path.is_symlink():  # it was harmed before otherwise
                random.choice(VALUE_HARMS)(path, random)
    elif (path := _database_at(room, random)) is not None:
        random.choice(HARMS)(path, random)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("values", [1.0, 0.0], ids=["values", "database"])
async def test_damage_is_a_miss_and_never_another_byte(
    tmp_path: Path, part: int, values: float, caplog: pytest.LogCaptureFixture
) -> None:
    template = Room(tmp_path / "template" / "blocks")
    async with template.tier() as tier:
        await fill_with_all(tier)
        assert await check(tier) == len(OIDS) * len(BLOCKS)
    kept = 0
    for turn in range(part * 12, part * 12 + 12):
        random = Random(f"{SEED}-{values}-{turn}")
        caplog.clear()
        room = Room(tmp_path / f"{turn}" / "blocks")
        shutil.copytree(template.path, room.path)
        if random.random() < 0.5:
            harm(room, random, values=values)
        async with room.tier() as tier:
            kept += await check(tier)
            harm(room, random, values=values)
            await check(tier)
            assert len(messages(caplog)) <= 3, messages(caplog)
            room.clock.now_s += RETRY_S
            await fill_with_all(tier)  # if that finds more damage, it is over after the next pause
            await check(tier)
            room.clock.now_s += RETRY_S
            await fill_with_all(tier)
            await check(tier)
        assert len(messages(caplog)) <= 6, messages(caplog)
        shutil.rmtree(room.path.parent)
    assert kept


class _Sick:
    """Calls of the system and of SQLite that fail at random."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.rate = 0.0
        self.failed = 0

    def maybe(self, *_: object) -> None:
        if self._random.random() < self.rate:
            self.failed += 1
            raise OSError(
                self._random.choice([errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EMFILE]), "sick"
            )

    def maybe_sql(self, statement: str, *_: object) -> None:
        # A rollback does not fail: SQLite takes what was written back or has done so already.
        if statement != "ROLLBACK" and self._random.random() < self.rate:
            self.failed += 1
            error = sqlite3.OperationalError("sick")
            error.sqlite_errorcode = self._random.choice(
                [sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN]
            )
            raise error


@pytest.mark.parametrize("part", PARTS)
async def test_failing_calls_are_misses(
    room: Room, part: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sick = _Sick(Random(f"{SEED}-{part}"))

    def failing(real: Callable[..., Any], before: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            before(*args)
            return real(*args, **named)

        return call

    monkeypatch.setattr(DirectFiles, "write", failing(DirectFiles.write, sick.maybe))
    monkeypatch.setattr(DirectFiles, "open", failing(DirectFiles.open, sick.maybe))
    monkeypatch.setattr(blockcache, "read_at", failing(blockcache.read_at, sick.maybe))
    sql = blockcache.BlockCache._sql.fget
    monkeypatch.setattr(blockcache.BlockCache, "_sql", property(lambda cache: failing(sql(cache), sick.maybe_sql)))
    random = Random(f"{SEED}-{part}-rates")
    async with room.tier() as tier:
        await fill_with_all(tier)
        for _ in range(40):
            caplog.clear()
            sick.rate = random.choice([0.01, 0.1, 0.5, 1.0])
            await fill_with_all(tier)
            await check(tier)
            assert len(messages(caplog)) <= 3
            sick.rate = 0.0
            room.clock.now_s += RETRY_S
            await check(tier)
        await fill_with_all(tier)
        assert await check(tier) == len(OIDS) * len(BLOCKS)
    assert sick.failed > 10
    for path in room.values():
        assert path.stat().st_size >= 9_000, "half a file was left"
    logging.getLogger(__name__).debug("%d calls failed in %s", sick.failed, os.fspath(room.path))
