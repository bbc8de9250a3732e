"""Extended attributes: where they are kept, what becomes of them when the file changes, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazyfs.core.errors import (
    NoAttributeError,
    NoRoomError,
    NotSupportedError,
    ReadOnlyError,
    StaleError,
)
from lazyfs.core.types import ROOT_INO, Changes
from lazyfs.vfs import xattrs
from tests.vfs.building import Clock, Knobs, Mount, Mounting, SmallPages, mounting

PART = Knobs().part


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> SmallPages:
    return SmallPages(clock=clock, min_part_size=1)


@pytest.fixture
def mount(store: SmallPages, clock: Clock, tmp_path: Path) -> Mounting:
    return mounting(store, clock, tmp_path, xattrs=True)


def extra(store: SmallPages, key: str) -> dict[str, str]:
    """User metadata besides mode, owner and time."""
    return {name: text for name, text in store._objects[key].metadata.items() if not name.startswith("file-")}


async def all_of(m: Mount, ino: int) -> dict[bytes, bytes]:
    return {name: await m.fs.xattrs.get(ino, name) for name in await m.fs.xattrs.names(ino)}


@pytest.mark.parametrize("size", [1, 3 * PART + 1])
async def test_of_a_stored_object(mount: Mounting, store: SmallPages, size: int) -> None:
    async with mount() as m:
        ino = await m.write("f", bytes(size))
        await m.fs.xattrs.set(ino, b"user.a", b"1")
        await m.fs.xattrs.set(ino, b"user.b", b"\0\xff")
        await m.fs.xattrs.set(ino, b"user.a", b"2")
        assert extra(store, "f") == {"a": "2", "b": "base64:AP8="}
        assert await all_of(m, ino) == {b"user.a": b"2", b"user.b": b"\0\xff"}
        await m.fs.setattr(ino, Changes(mode=0o600))
        assert extra(store, "f") == {"a": "2", "b": "base64:AP8="}
        await m.fs.xattrs.remove(ino, b"user.b")
        assert extra(store, "f") == {"a": "2"}
        with pytest.raises(NoAttributeError):
            await m.fs.xattrs.remove(ino, b"user.b")
        with pytest.raises(NoAttributeError):
            await m.fs.xattrs.get(ino, b"user.b")
        assert (await m.lookup("f")).ino == ino
        await m.fs.rename(ROOT_INO, "f", ROOT_INO, "g", replace=True)
        assert await all_of(m, ino) == {b"user.a": b"2"}
        assert await m.read("g") == bytes(size)


@pytest.mark.parametrize("size", [1, 3 * PART + 1])
async def test_of_what_is_not_finished(mount: Mounting, store: SmallPages, size: int) -> None:
    async with mount() as m:
        ino, fh = await m.create("f")
        await m.fs.xattrs.set(ino, b"user.gone", b"1")
        await m.fs.write(ino, fh, 0, bytes(size))
        await m.fs.xattrs.set(ino, b"user.a", b"1")
        await m.fs.xattrs.remove(ino, b"user.gone")
        assert await all_of(m, ino) == {b"user.a": b"1"}
        assert "set_metadata" not in [request.verb for request in store.requests]
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        assert extra(store, "f") == {"a": "1"}
        assert await all_of(m, ino) == {b"user.a": b"1"}


async def test_a_rewrite_keeps_them(mount: Mounting, store: SmallPages) -> None:
    store.put_now("f", b"1", metadata={"a": "1", "Theirs é": "x"})
    async with mount() as m:
        await m.write("f", b"22")
        assert extra(store, "f") == {"a": "1", "Theirs é": "x"}
        ino, fh = await m.open("f", os.O_RDWR)
        await m.fs.write(ino, fh, 1, b"3")
        await m.fs.xattrs.set(ino, b"user.b", b"2")
        await m.fs.fsync(ino, fh)
        assert (store.body("f"), extra(store, "f")) == (b"23", {"a": "1", "Theirs é": "x", "b": "2"})
        await m.fs.xattrs.set(ino, b"user.c", b"3")
        assert extra(store, "f")["c"] == "3", "what is stored is told at once"
        await m.fs.write(ino, fh, 1, b"4")
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        assert (store.body("f"), extra(store, "f")["c"]) == (b"24", "3")


async def test_what_was_asked_is_believed_as_long_as_the_name(mount: Mounting, store: SmallPages, clock: Clock) -> None:
    store.put_now("f", b"1", metadata={"A": "1", "file-mtime": "1ns", "mode": "33188"})
    async with mount() as m:
        ino = (await m.lookup("f")).ino
        for _ in range(3):
            assert await all_of(m, ino) == {b"user.a": b"1"}
        assert [request.verb for request in store.requests] == ["head"]
        await m.fs.xattrs.remove(ino, b"user.a")
        assert "A" not in store._objects["f"].metadata
        store.put_now("f", b"1", metadata={"a": "theirs"})
        clock.advance(61)
        assert await all_of(m, (await m.lookup("f")).ino) == {b"user.a": b"theirs"}
        store.put_now("f", b"22", metadata={"a": "another version"})
        clock.advance(61)
        with pytest.raises(StaleError):
            await m.fs.xattrs.names(ino)
        await m.settle()
        assert await all_of(m, (await m.lookup("f")).ino) == {b"user.a": b"another version"}


async def test_of_a_directory(mount: Mounting, store: SmallPages) -> None:
    store.put_now("d/f", b"1")
    async with mount() as m:
        ino = (await m.lookup("d")).ino
        assert await all_of(m, ino) == {}
        await m.fs.xattrs.set(ino, b"user.a", b"1")
        await m.fs.setattr(ino, Changes(mode=0o700))
        assert extra(store, "d/") == {"a": "1"}
        assert await all_of(m, ino) == {b"user.a": b"1"}
        await m.fs.xattrs.remove(ino, b"user.a")
        assert extra(store, "d/") == {}
        assert await all_of(m, ROOT_INO) == {}
        with pytest.raises(NotSupportedError):
            await m.fs.xattrs.set(ROOT_INO, b"user.a", b"1")


async def test_what_does_not_fit_is_refused_and_changes_nothing(
    mount: Mounting, store: SmallPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mount() as m:
        ino = await m.write("f", b"1234")
        store.requests.clear()
        for name in (b"security.capability", b"trusted.a", b"user.Upper", b"user.lazyfs.state", b"user.file-mtime"):
            with pytest.raises(NotSupportedError):
                await m.fs.xattrs.set(ino, name, b"1")
            with pytest.raises(NoAttributeError):
                await m.fs.xattrs.get(ino, name)
        assert store.requests == [], "nor is anything asked"
        with pytest.raises(NoRoomError):
            await m.fs.xattrs.set(ino, b"user.a", b"x" * 2000)
        await m.fs.xattrs.set(ino, b"user.a", b"x" * 1800)
        with pytest.raises(NoRoomError):
            await m.fs.xattrs.set(ino, b"user.b", b"x" * 200)
        assert list(extra(store, "f")) == ["a"]
        monkeypatch.setattr(xattrs, "MAX_COPY_BYTES", 3)
        with pytest.raises(NotSupportedError):
            await m.fs.xattrs.set(ino, b"user.b", b"1")
        link = await m.fs.make_link(ROOT_INO, "link", b"f")
        assert await m.fs.xattrs.names(link.ino) == []
    async with mount(read_only=True) as m:
        ino = (await m.lookup("f")).ino
        with pytest.raises(ReadOnlyError):
            await m.fs.xattrs.set(ino, b"user.b", b"1")
        with pytest.raises(ReadOnlyError):
            await m.fs.xattrs.remove(ino, b"user.a")
        assert list(await all_of(m, ino)) == [b"user.a"]
