"""What is at hand is told at once, and is what the coroutines tell; where these would wait, nothing has happened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazyfs.core.errors import (
    BadHandleError,
    IsDirectoryError,
    NoEntryError,
    StaleError,
    StaleInodeError,
)
from lazyfs.core.types import ROOT_INO, Range
from lazyfs.vfs import versions
from tests.vfs.building import Clock, Mounting, SmallPages, mounting

WHOLE = Range(0, 2**40)
BODY = bytes(range(48))
FIRST = Range(0, 8)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> SmallPages:
    store = SmallPages(clock=clock, min_part_size=1)
    store.put_now("d/f", BODY)
    return store


@pytest.fixture
def mount(store: SmallPages, clock: Clock, tmp_path: Path) -> Mounting:
    return mounting(store, clock, tmp_path)


async def test_names_within_their_lease(mount: Mounting, store: SmallPages, clock: Clock) -> None:
    async with mount() as m:
        directory = m.fs.now.lookup(ROOT_INO, "d")
        assert directory == await m.fs.lookup(ROOT_INO, "d")
        assert directory is not None
        found = m.fs.now.lookup(directory.ino, "f")
        assert found == await m.fs.lookup(directory.ino, "f")
        assert found is not None
        assert m.fs.now.getattr(found.ino) == await m.fs.getattr(found.ino)
        with pytest.raises(NoEntryError):
            m.fs.now.lookup(directory.ino, "none")
        assert m.namespace.absence_lease_s(directory.ino, "none") > 0
        with pytest.raises(StaleInodeError):
            m.fs.now.getattr(4711)
        clock.advance(61)
        assert m.fs.now.lookup(directory.ino, "f") is None
        assert m.fs.now.lookup(directory.ino, "none") is None
        assert not store.requests, "nobody has asked"


async def test_what_has_to_be_asked_for_its_mode_waits(mount: Mounting) -> None:
    async with mount(asks_modes=True) as m:
        ino = (await m.namespace.lookup(ROOT_INO, "d")).ino
        assert m.fs.now.lookup(ROOT_INO, "d") is None
        assert m.fs.now.getattr(ino) is None
        await m.fs.getattr(ino)
        assert m.fs.now.getattr(ino) is not None


async def test_open_and_release_for_reading(mount: Mounting, clock: Clock) -> None:
    async with mount() as m:
        ino = (await m.lookup("d/f")).ino
        assert m.fs.open_now(ino, os.O_WRONLY, 1) is None
        assert m.fs.open_now(ino, os.O_RDWR | os.O_TRUNC, 1) is None
        fh = m.fs.open_now(ino, os.O_RDONLY, 1)
        assert fh is not None
        assert m.fs.now.flush(fh)
        clock.advance(61)
        assert m.fs.open_now(ino, os.O_RDONLY, 1) is not None, "it is open"
        for one in (fh, fh + 1):
            assert m.fs.release_now(one)
        assert m.fs.open_now(ino, os.O_RDONLY, 1) is None, "its lease is over"
        with pytest.raises(BadHandleError):
            m.fs.release_now(fh)
        with pytest.raises(IsDirectoryError):
            m.fs.now.openable(ROOT_INO)


async def test_a_writer_waits(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        ino, fh = await m.create("new")
        await m.fs.write(ino, fh, 0, b"data")
        assert not m.fs.now.flush(fh)
        assert m.fs.now.read(fh, WHOLE) is None
        assert not m.fs.release_now(fh)
        assert len(m.fs.handles) == 1
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        assert store.body("new") == b"data"


async def test_only_what_is_in_memory_is_read(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        ino, fh = await m.open("d/f")
        assert m.fs.now.read(fh, FIRST) is None
        await m.settle()
        assert not store.requests, "nothing is sent off either"
        assert await m.fs.read(ino, fh, FIRST) == BODY[:8]
        await m.settle()
        sent = len(store.requests)
        assert m.fs.now.read(fh, FIRST) == BODY[:8]
        assert m.fs.now.read(fh, Range(48, 60)) == b""
        assert m.fs.now.read(fh, Range(2, 6)) == BODY[2:6]
        assert len(store.requests) == sent
        assert m.stats.snapshot()["read.bytes.memory"] == 12
        await m.fs.release(ino, fh)


async def test_directories_that_are_listed(mount: Mounting, store: SmallPages, clock: Clock) -> None:
    async with mount() as m:
        fh = m.fs.now.open_directory(ROOT_INO)
        assert fh is not None
        entries = m.fs.now.read_directory(fh, 0)
        assert entries is not None
        assert list(entries) == list(await m.fs.read_directory(fh, 0))
        m.fs.close_directory(fh)
        clock.advance(61)
        assert m.fs.now.open_directory(ROOT_INO) is None
        assert len(m.fs.handles) == 0
        fh = await m.fs.open_directory(ROOT_INO)
        assert m.fs.now.open_directory(ROOT_INO) == fh + 1, "listed anew"
        for one in (fh, fh + 1):
            m.fs.close_directory(one)


# -- reading by inode -------------------------------------------------------------------------------------------------


async def test_an_inode_stays_bound_to_its_version_until_it_is_forgotten(mount: Mounting, store: SmallPages) -> None:
    async with mount(read_only=True) as m:
        ino = (await m.lookup("d/f")).ino
        assert m.fs.versions.read_now(ino, FIRST, 1) is None
        assert await m.fs.versions.read(ino, FIRST, 1) == BODY[:8]
        store.put_now("d/f", BODY[::-1])
        await m.namespace.learn("d/f")
        new = (await m.lookup("d/f")).ino
        assert new != ino
        assert await m.fs.versions.read(new, WHOLE, 1) == BODY[::-1]
        assert await m.fs.versions.read(ino, FIRST, 1) == BODY[:8]
        assert m.fs.versions.read_now(ino, FIRST, 1) == BODY[:8]
        with pytest.raises(StaleError):
            await m.fs.versions.read(ino, Range(40, 48), 1)
        assert (await m.fs.getattr(ino)).size == 48
        m.fs.versions.forget(ino)
        m.fs.versions.forget(ino)
        with pytest.raises(StaleInodeError):
            await m.fs.versions.read(ino, FIRST, 1)
        with pytest.raises(StaleInodeError):
            m.fs.now.getattr(ino)


async def test_as_many_inodes_are_bound_as_there_is_room_for(
    mount: Mounting, store: SmallPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "MAX_BOUND", 2)
    for number in range(4):
        store.put_now(f"e/{number}", BODY)
    async with mount(read_only=True) as m:
        inos = [(await m.lookup(f"e/{number}")).ino for number in range(4)]
        for ino in inos * 2:
            assert await m.fs.versions.read(ino, FIRST, 1) == BODY[:8]
            assert len(m.fs.versions) <= 2


async def test_what_may_not_be_opened_may_not_be_read(mount: Mounting) -> None:
    async with mount(read_only=True) as m:
        with pytest.raises(IsDirectoryError):
            m.fs.versions.read_now(ROOT_INO, FIRST, 1)
        with pytest.raises(StaleInodeError):
            m.fs.versions.read_now(4711, FIRST, 1)
