"""Damage to write-back's journal between two mounts: it is told, or nothing of it matters; never another change."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from random import Random

import pytest

from lazyfs.core.changes import Change, Op
from lazyfs.core.errors import NoRoomError, StartupError
from lazyfs.core.types import Condition, ObjectId
from lazyfs.index.changes import ChangeJournal
from tests.campaign import SEED, times
from tests.index.test_trouble import HARMS, disk, fill

__all__ = ["disk"]
CHANGES = [
    Change(
        number=number,
        op=[Op.PUT, Op.PUT, Op.COPY, Op.DELETE][number % 4],
        key=f"d{number % 3}/key-{number}",
        size=number * 7,
        token="" if number % 4 > 1 else f"{number:016x}",
        source=ObjectId(f"d0/{number}", f'"{number}"') if number % 4 == 2 else None,
        condition=Condition(etag=f'"{number}"') if number % 5 else Condition(absent=True),
        metadata={"file-mode": "0644"},
    )
    for number in range(1, 80)
]


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        shutil.copy(path, target)


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(times(1, 80)))
async def test_a_damaged_journal_is_told_and_never_read_as_other_changes(part: int, tmp_path: Path) -> None:
    killed, closed = tmp_path / "killed", tmp_path / "closed"
    closed.mkdir()
    with contextlib.closing(ChangeJournal(closed / "journal.db")) as journal:
        for change in CHANGES:
            await journal.record([change])
        _copy(closed, killed)  # as kill -9 leaves it: much is in the WAL only
    for place in (closed, killed):
        (place / "0123.data").write_bytes(b"x")
    refused = 0
    for turn in range(part * 40, part * 40 + 40):
        random = Random(f"{SEED}-{turn}")
        place = tmp_path / f"{turn}"
        _copy(random.choice([closed, killed]), place)
        harmed = random.choice(sorted(place.glob("journal.db*")))
        random.choice(HARMS)(harmed, random)
        try:
            with contextlib.closing(ChangeJournal(place / "journal.db")) as journal:
                found = journal.load()
        except StartupError:
            refused += 1
        else:
            # SQLite takes a damaged frame of the WAL for its end: what was written before is there.
            whole = len(CHANGES) if harmed.suffix == ".db" and not list(place.glob("*-wal")) else len(found)
            assert found == CHANGES[:whole], (turn, harmed)
    assert refused


async def test_a_journal_without_a_checksum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with contextlib.closing(ChangeJournal(path)) as journal:
        await journal.record(CHANGES)
        journal._db.execute("UPDATE change SET record = substr(record, 1, instr(record, char(9)) - 1)")
        assert journal.load() == CHANGES
        journal._db.execute("UPDATE change SET record = replace(record, 'key-3', 'key-4') || char(9) || '01234567'")
        with pytest.raises(StartupError, match="not as it was written"):
            journal.load()


async def test_a_full_disk_is_told_and_what_was_recorded_stays(disk: Path) -> None:
    with contextlib.closing(ChangeJournal(disk / "journal.db")) as journal:
        await journal.record(CHANGES[:40])
        fill(disk)
        for _ in range(3):
            with pytest.raises(NoRoomError):
                await journal.record(CHANGES[40:])
            assert journal.load() == CHANGES[:40]
        (disk / "ballast").unlink()
        await journal.record(CHANGES[40:])
        assert journal.load() == CHANGES
