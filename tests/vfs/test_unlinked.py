"""A file that has lost its name lives on until its last close, here and nowhere else, as far as it is here."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.core.errors import NoRoomError, OutOfOrderError, StoreError
from lazyfs.core.types import ROOT_INO, Changes, Range
from tests.vfs.building import Knobs, Mount, mounted
from tests.vfs.stores import ScriptedStore

PART = Knobs().part
BACK = pytest.mark.parametrize("back", [False, True], ids=["through", "back"])
WAYS = pytest.mark.parametrize("way", ["unlink", "replace"])


@asynccontextmanager
async def scene(store: ScriptedStore, directory: Path, *, back: bool = False, **options: Any) -> AsyncIterator[Mount]:
    """A mount with a spool. When it ends nothing is left of any file without a name."""
    if back:
        options["write_back"] = directory / "back"
    async with mounted(store, directory / "index.db", **{"spool": directory / "spool", **options}) as m:
        yield m
        await m.settle()
        assert not any(m.gauges().values()), m.gauges()
        assert store.uploads == 0
        assert list(directory.glob("back/*.data")) == []


async def lose(m: Mount, name: str, way: str) -> None:
    """Take the name from what has it."""
    if way == "unlink":
        await m.fs.unlink(ROOT_INO, name)
    else:
        await m.write("other", b"other")
        await m.fs.rename(ROOT_INO, "other", ROOT_INO, name, replace=True)


async def close(m: Mount, ino: int, fh: int) -> None:
    await m.fs.flush(ino, fh)
    await m.fs.release(ino, fh)


steps = st.lists(
    st.tuples(st.just("write"), st.integers(0, 5 * PART), st.integers(1, 3 * PART))
    | st.tuples(st.just("truncate"), st.integers(0, 5 * PART), st.just(0))
    | st.tuples(st.just("read"), st.integers(0, 5 * PART), st.integers(1, 3 * PART))
    | st.tuples(st.sampled_from(["fsync", "flush"]), st.just(0), st.just(0)),
    max_size=8,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(back=st.booleans(), way=st.sampled_from(["unlink", "replace"]), stored=st.booleans(), before=steps, after=steps)
def test_an_unlinked_file_is_what_a_local_file_would_be(
    back: bool, way: str, stored: bool, before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    async def run(m: Mount, ino: int, fh: int, model: bytearray, script: list[tuple[str, int, int]]) -> None:
        for number, (verb, at, length) in enumerate(script):
            if verb == "write":
                piece = bytes((number * 31 + index) % 250 + 1 for index in range(length))
                assert await m.fs.write(ino, fh, at, piece) == length
                model.extend(bytes(max(0, at - len(model))))
                model[at : at + length] = piece
            elif verb == "truncate":
                await m.fs.setattr(ino, Changes(size=at))
                del model[at:]
                model.extend(bytes(at - len(model)))
            elif verb == "read":
                assert bytes(await m.fs.read(ino, fh, Range(at, at + length))) == model[at : at + length]
            else:
                await getattr(m.fs, verb)(ino, fh)
            assert (await m.fs.getattr(ino)).size == len(model)

    async def main(directory: Path) -> None:
        store = ScriptedStore()
        async with scene(store, directory, back=back, disk=directory / "disk") as m:
            model = bytearray(range(1, 4 * PART)) if stored else bytearray()
            if stored:
                await m.write("f", bytes(model))
            ino, fh = await m.open("f", os.O_RDWR) if stored else await m.create("f")
            await run(m, ino, fh, model, before)
            assert bytes(await m.fs.read(ino, fh, Range(0, 1000))) == model  # what of it is here stays
            await lose(m, "f", way)
            await m.settle()
            assert (await m.fs.getattr(ino)).links == 0
            await run(m, ino, fh, model, after)
            assert bytes(await m.fs.read(ino, fh, Range(0, 1000))) == model
            await close(m, ino, fh)
            await m.settle()
            assert {key: bytes(found.body) for key, found in store._objects.items()} == (
                {} if way == "unlink" else {"f": b"other"}
            )

    with TemporaryDirectory(prefix="lazyfs-unlinked-") as directory:
        trio.run(main, Path(directory))


@BACK
@WAYS
async def test_nothing_of_an_unlinked_file_goes_up(tmp_path: Path, back: bool, way: str) -> None:
    store = ScriptedStore()
    async with scene(store, tmp_path, back=back) as m:
        ino, fh = await m.create("f")
        await m.fs.write(ino, fh, 0, b"x" * 5 * PART)
        await lose(m, "f", way)
        await m.settle()
        assert store.uploads == 0, "what was on its way is withdrawn"
        store.requests.clear()
        await m.fs.write(ino, fh, 5 * PART, b"y" * 50 * PART)
        await m.fs.fsync(ino, fh)
        assert bytes(await m.fs.read(ino, fh, Range(5 * PART - 1, 5 * PART + 1))) == b"xy"
        await close(m, ino, fh)
        await m.settle()
        assert store.requests == []


@BACK
async def test_who_reads_an_unlinked_file_outlives_who_writes_it(tmp_path: Path, back: bool) -> None:
    store = ScriptedStore()
    async with scene(store, tmp_path, back=back) as m:
        ino, writing = await m.create("f")
        await m.fs.write(ino, writing, 0, b"x" * 3 * PART)
        reading = await m.fs.open(ino, os.O_RDONLY, 1)
        await m.fs.unlink(ROOT_INO, "f")
        await close(m, ino, writing)
        assert bytes(await m.fs.read(ino, reading, Range(0, 100))) == b"x" * 3 * PART
        again = await m.fs.open(ino, os.O_RDWR, 1)  # by /proc/PID/fd
        await m.fs.write(ino, again, 0, b"y")
        await m.fs.release(ino, reading)
        assert bytes(await m.fs.read(ino, again, Range(0, 2))) == b"yx"
        await close(m, ino, again)


@WAYS
async def test_what_waited_for_its_upload_stays_for_who_has_it_open(tmp_path: Path, way: str) -> None:
    store = ScriptedStore()
    held = store.hold("create")
    async with scene(store, tmp_path, back=True) as m:
        await m.write("f", b"x" * 5 * PART)
        ino, reading = await m.open("f")
        await lose(m, "f", way)
        held.set()
        await m.settle()
        assert bytes(await m.fs.read(ino, reading, Range(0, 100))) == b"x" * 5 * PART
        writing = await m.fs.open(ino, os.O_RDWR, 1)
        await m.fs.write(ino, writing, 0, b"y")
        assert bytes(await m.fs.read(ino, reading, Range(0, 2))) == b"yx"
        await close(m, ino, writing)
        assert len(list((tmp_path / "back").glob("*.data"))) == 1
        await m.fs.release(ino, reading)


async def test_without_a_spool_an_unlinked_file_of_one_part_lives_in_memory(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with scene(store, tmp_path, spool=None) as m:
        ino, fh = await m.create("f")
        await m.fs.write(ino, fh, 0, b"x" * PART)
        await m.fs.unlink(ROOT_INO, "f")
        await m.fs.write(ino, fh, 0, b"y")
        assert bytes(await m.fs.read(ino, fh, Range(0, 2))) == b"yx"
        with pytest.raises(NoRoomError, match="needs a spool"):
            await m.fs.write(ino, fh, PART, b"z")
        await close(m, ino, fh)
        assert {request.verb for request in store.requests} <= {"head", "list"}


async def test_without_a_spool_an_unlinked_file_of_more_is_lost(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with scene(store, tmp_path, spool=None) as m:
        ino, fh = await m.create("f")
        await m.fs.write(ino, fh, 0, b"x" * 3 * PART)
        await m.fs.unlink(ROOT_INO, "f")
        for verb in (lambda: m.fs.write(ino, fh, 3 * PART, b"z"), lambda: m.fs.read(ino, fh, Range(0, 1))):
            with pytest.raises(OutOfOrderError):
                await verb()
        await close(m, ino, fh)


async def test_an_unlinked_file_that_fills_the_spool_is_told(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with scene(store, tmp_path, knobs=Knobs(spool=10 * PART)) as m:
        ino, fh = await m.create("f")
        await m.fs.unlink(ROOT_INO, "f")
        with pytest.raises(NoRoomError):
            await m.fs.write(ino, fh, 0, b"x" * 20 * PART)
        await close(m, ino, fh)


async def test_an_unlink_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    def refuse(_when: str, verb: str, _key: str) -> None:
        if verb == "delete":
            raise StoreError("refused")

    store = ScriptedStore()
    async with scene(store, tmp_path) as m:
        await m.write("f", b"old")
        await m.settle()
        ino, fh = await m.open("f", os.O_RDWR)
        await m.fs.write(ino, fh, 0, b"new")
        store.hook = refuse
        with pytest.raises(StoreError):
            await m.fs.unlink(ROOT_INO, "f")
        assert (await m.fs.getattr(ino)).links == 1
        await close(m, ino, fh)
        assert store.body("f") == b"new"


async def test_an_unlinked_file_is_no_loss_when_the_mount_ends(tmp_path: Path) -> None:
    """No error is logged."""
    store = ScriptedStore()
    async with scene(store, tmp_path) as m:
        ino, fh = await m.create("f")
        await m.fs.write(ino, fh, 0, b"x" * 3 * PART)
        await m.fs.unlink(ROOT_INO, "f")
        await m.fs.abandon()
        await m.fs.release(ino, fh)
