"""Writing with a spool: any pattern on any file, and what was written is not fetched again."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.spool import DIRECT_BYTES, Spool
from lazyfs.core.errors import (
    LazyfsError,
    NoRoomError,
    NotSupportedError,
    PreconditionFailedError,
    SpoolError,
)
from lazyfs.core.parts import PartSizes
from lazyfs.core.types import ANY, Condition, Range
from lazyfs.store.base import DEFAULT_PUT
from lazyfs.vfs.filesystem import Changes
from lazyfs.vfs.writer import Writer
from tests.vfs.building import Clock, Knobs, Mount, mounted
from tests.vfs.stores import ScriptedStore

PART = 16
KEY = "dir/file"


def data(size: int, seed: int = 0) -> bytes:
    return bytes((seed + index * 7) % 251 + 1 for index in range(size))


class Room:
    """A store, a spool and memory for one writer."""

    def __init__(self, directory: Path, nursery: trio.Nursery, limit: int) -> None:
        self.store = ScriptedStore()
        self.memory = MemoryTier(budget_bytes=200)
        self.spool = Spool(directory, limit_bytes=limit)
        self.nursery = nursery

    def writer(self, content: bytes = b"", condition: Condition = ANY) -> Writer:
        return Writer(
            store=self.store,
            memory=self.memory,
            nursery=self.nursery,
            key=KEY,
            content=content,
            condition=condition,
            options=DEFAULT_PUT,
            part_sizes=PartSizes(PART),
            spool=self.spool,
        )


@asynccontextmanager
async def room(limit: int = 10**6, directory: Path | None = None) -> AsyncIterator[Room]:
    """Leaving it waits for whatever still runs; then nothing may be held."""
    with TemporaryDirectory() as made:
        async with trio.open_nursery() as nursery:
            found = Room(directory or Path(made) / "spool", nursery, limit)
            yield found
        assert found.memory.reserved_bytes == found.store.uploads == found.spool.used_bytes == 0


FAR = st.integers(0, 6 * PART)
steps = st.lists(
    st.tuples(st.sampled_from(["write", "append", "truncate", "read"]), FAR, st.integers(1, 3 * PART))
    | st.just(("commit", 0, 0)),
    max_size=14,
)


@given(st.binary(max_size=4 * PART), steps)
@example(b"", [("append", 0, 40), ("commit", 0, 0), ("append", 0, 3), ("write", 2, 1), ("commit", 0, 0)])
@example(b"", [("append", 0, 40), ("truncate", 5, 1), ("commit", 0, 0), ("truncate", 50, 1)])
@example(b"x" * 50, [("truncate", 17, 1), ("append", 0, 1)])
def test_any_pattern_is_what_a_local_file_would_hold(content: bytes, script: list[tuple[str, int, int]]) -> None:
    async def main() -> None:
        async with room() as place:
            model = bytearray(content)
            if len(content) <= PART:
                writer = place.writer(content)
            else:
                writer = place.writer()
                for start in range(0, len(content), 10):
                    await writer.load(content[start : start + 10])
            for number, (verb, at, length) in enumerate(script):
                if verb in ("write", "append"):
                    start = len(model) if verb == "append" else at
                    assert await writer.write(start, data(length, number)) == length
                    model.extend(bytes(max(0, start - len(model))))
                    model[start : start + length] = data(length, number)
                elif verb == "truncate":
                    await writer.truncate(at)
                    del model[at:]
                    model.extend(bytes(at - len(model)))
                elif verb == "read":
                    assert await writer.read(Range(at, at + length)) == model[at : at + length]
                else:
                    await writer.commit()
                    assert place.store.body(KEY) == model
                assert writer.size == len(model)
                assert writer.is_readable
                assert len(writer._tail) <= PART
            assert await writer.read(Range(0, 10**6)) == model
            await writer.commit()
            assert place.store.body(KEY) == model
            writer.close()

    trio.run(main)


async def test_a_stream_is_still_sent_while_it_is_written() -> None:
    async with room() as place:
        writer = place.writer()
        for at in range(0, 5 * PART, 4):
            await writer.write(at, data(4, at))
        await trio.testing.wait_all_tasks_blocked()
        assert len(place.store.parts) == 4
        await writer.commit()
        assert place.store.calls["create"] == 1
        writer.close()


class SlowDisk:
    """os.pwrite that waits for `go`, and then fails if it shall."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.go = threading.Event()
        self.asked = 0

        def pwrite(descriptor: int, content: bytes, offset: int) -> int:
            self.asked += 1
            self.go.wait(5)
            if fails:
                raise OSError(errno.EIO, "sick")
            return write(descriptor, content, offset)

        write = os.pwrite
        monkeypatch.setattr(os, "pwrite", pwrite)


async def test_the_program_writes_on_while_the_disk_is_busy_but_never_more_than_a_part_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with room() as place:
        disk, writer, written = SlowDisk(monkeypatch), place.writer(), list[int]()

        async def write() -> None:
            for at in range(0, 4 * PART, PART):
                written.append(await writer.write(at, data(PART, at)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            with trio.fail_after(3):
                while disk.asked == 0:
                    await trio.sleep(0.001)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(written) == 2
            assert disk.asked == 1
            disk.go.set()
        assert await writer.read(Range(0, 99)) == b"".join(data(PART, at) for at in range(0, 4 * PART, PART))
        await writer.commit()
        writer.close()


async def test_who_reads_back_waits_for_what_is_on_its_way_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    async with room() as place:
        disk, writer, found = SlowDisk(monkeypatch), place.writer(), list[bytes]()
        await writer.write(0, data(PART + 1))

        async def read() -> None:
            found.append(bytes(await writer.read(Range(0, 9))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not found
            disk.go.set()
        assert found == [data(9)]
        await writer.commit()
        assert place.store.body(KEY) == data(PART + 1)
        writer.close()


async def test_a_disk_that_fails_behind_a_program_is_no_harm_to_a_stream_and_told_to_who_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with room() as place:
        disk, stream, patched = SlowDisk(monkeypatch, fails=True), place.writer(), place.writer()
        disk.go.set()
        await stream.write(0, data(3 * PART))
        await stream.commit()
        assert place.store.body(KEY) == data(3 * PART)
        assert stream.take_spool() is None
        with pytest.raises(SpoolError):
            await stream.read(Range(0, 9))
        await patched.write(0, data(PART + 1))
        with pytest.raises(SpoolError):
            await patched.write(0, b"x")
        with pytest.raises(SpoolError):
            await patched.commit()
        stream.close()
        patched.close()


async def test_what_the_disk_did_not_take_at_the_end_stays_in_memory_and_all_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with room() as place:
        writer = place.writer()
        await writer.write(0, data(2 * PART + 3))
        await writer.write(1, b"changed")
        expected = data(1) + b"changed" + data(2 * PART + 3)[8:]
        disk = SlowDisk(monkeypatch, fails=True)
        disk.go.set()
        await writer.commit()  # the whole goes up again; that the spool gets its end, too, is not needed for that
        monkeypatch.undo()
        assert disk.asked
        assert place.store.body(KEY) == expected
        assert await writer.read(Range(0, 99)) == expected
        await writer.write(len(expected), b", more")
        await writer.commit()
        assert place.store.body(KEY) == expected + b", more"
        writer.close()


async def test_leaving_the_order_withdraws_what_was_sent() -> None:
    async with room() as place:
        writer = place.writer()
        await writer.write(0, data(4 * PART))
        await writer.write(0, b"!")
        await trio.testing.wait_all_tasks_blocked()
        assert place.store.uploads == 0
        await writer.write(4 * PART, data(4 * PART))
        assert place.store.uploads == 0, "the rest goes up at commit"
        await writer.commit()
        assert place.store.body(KEY) == b"!" + data(4 * PART)[1:] + data(4 * PART)
        writer.close()


async def test_a_stream_that_outgrows_the_spool_goes_on_and_is_from_then_on_in_order() -> None:
    async with room(limit=3 * PART) as place:
        writer = place.writer()
        await writer.write(0, data(8 * PART))
        assert not writer.is_readable
        assert place.spool.used_bytes == 0
        await writer.commit()
        assert place.store.body(KEY) == data(8 * PART)
        with pytest.raises(NoRoomError):  # the program is told why, not that its pattern is wrong
            await writer.write(0, b"x")
    assert place.store.body(KEY) == data(8 * PART)


async def test_reading_back_a_stream_that_outgrew_the_spool_tells_why() -> None:
    async with room(limit=3 * PART) as place:
        writer = place.writer()
        await writer.write(0, data(8 * PART))
        with pytest.raises(NoRoomError):
            await writer.read(Range(0, 1))
        await writer.commit()


async def test_what_was_changed_needs_no_room_for_its_end() -> None:
    """The last part lies in memory: a file whose writes were taken is not refused at close for want of room."""
    async with room(limit=2 * PART) as place:
        writer = place.writer()
        await writer.write(0, data(3 * PART))
        await writer.write(0, b"x")
        await writer.commit()
        want = b"x" + data(3 * PART)[1:]
        assert place.store.body(KEY) == want
        assert await writer.read(Range(0, 10 * PART)) == want
        await writer.write(3 * PART - 1, b"y")
        await writer.commit()
        assert place.store.body(KEY) == want[:-1] + b"y"
        assert writer.take_spool() is None, "it is not all of it"
        writer.close()


async def test_a_file_that_was_cut_to_a_part_gives_its_room_back_and_streams_again() -> None:
    async with room() as place:
        writer = place.writer()
        await writer.write(0, data(3 * PART))
        await writer.truncate(PART - 1)
        await writer.commit()
        assert place.spool.used_bytes == 0
        assert writer.small_content == data(PART - 1)
        await writer.write(PART - 1, data(4 * PART))
        await trio.testing.wait_all_tasks_blocked()
        assert [number for number, _ in place.store.parts] == [1, 2, 1, 2, 3, 4]
        await writer.commit()
        assert place.store.body(KEY) == data(PART - 1) + data(4 * PART)
        writer.close()


async def test_a_full_disk_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    async with room() as place:
        writer = place.writer()
        await writer.write(0, data(2 * PART))
        await writer.write(0, b"x")

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(NoRoomError):
            await writer.write(0, b"x")


async def test_a_read_that_a_truncation_overtakes_is_what_is_left() -> None:
    async with room() as place:
        writer = place.writer()
        await writer.write(0, data(5 * PART))
        real = writer._spooled._file
        assert real is not None

        class Overtaken:
            """The thread that reads comes after the one that truncates."""

            async def read(self, start: int, stop: int) -> bytes:
                writer._spooled._file = real
                await writer.truncate(PART)
                return await real.read(start, stop)

        writer._spooled._file = Overtaken()  # type: ignore[assignment]
        assert await writer.read(Range(0, 5 * PART)) == data(PART)
        writer.close()
        await writer.discard()


async def test_a_spool_file_that_is_closed_takes_no_room_any_more() -> None:
    async with room() as place:
        file = await place.spool.open()
        await file.write(0, b"x")
        file.close()
        with pytest.raises(SpoolError):
            await file.write(1, b"y")
        file.close()


async def test_where_no_nameless_file_can_be_made_one_is_made_and_loses_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on NFS, and in containers whose kernel is older than 6.2."""
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    async with room(directory=tmp_path) as place:
        writer = place.writer()
        await writer.write(0, data(5 * PART))
        assert os.listdir(tmp_path) == []
        assert await writer.read(Range(3, 4 * PART)) == data(4 * PART)[3:]
        await writer.commit()
        writer.close()


async def test_a_change_for_which_the_spool_has_no_room_is_an_error_and_leaves_nothing() -> None:
    async with room(limit=3 * PART) as place:
        writer = place.writer()
        await writer.write(0, data(2 * PART + 1))
        await writer.write(0, b"x")
        with pytest.raises(NoRoomError):
            await writer.write(2 * PART, data(4 * PART))
        with pytest.raises(NoRoomError):
            await writer.commit()
    assert not place.store.calls["put"]


async def test_without_a_place_for_the_spool_a_stream_goes_up_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    async with room(directory=tmp_path / "file") as place:
        writer = place.writer()
        await writer.write(0, data(5 * PART))
        await writer.commit()
        assert place.store.body(KEY) == data(5 * PART)
        other = place.writer()
        with pytest.raises(SpoolError):
            await other.load(data(5 * PART))


@pytest.mark.parametrize("when", ["streaming", "changed"])
async def test_what_is_discarded_gives_back_its_room(when: str) -> None:
    async with room() as place:
        writer = place.writer()
        await writer.write(0, data(5 * PART))
        if when == "changed":
            await writer.write(3, b"x")
        await writer.discard()
        with pytest.raises(LazyfsError):
            await writer.read(Range(0, 1))


async def test_a_lost_race_is_told_also_when_all_goes_up_at_commit() -> None:
    async with room() as place:
        place.store.put_now(KEY, b"theirs")
        writer = place.writer(condition=Condition(absent=True))
        await writer.write(0, data(4 * PART))
        await writer.write(0, b"x")
        with pytest.raises(PreconditionFailedError):
            await writer.commit()
        assert place.store.body(KEY) == b"theirs"


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_spool_file_holds_what_was_written_directly_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, refuses: bool
) -> None:
    if refuses:  # some file systems open for direct I/O and then do not do it
        written = os.pwrite

        def pwrite(descriptor: int, data: Any, offset: int) -> int:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "no direct I/O")
            return written(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", pwrite)
    spool, model, random = Spool(tmp_path, limit_bytes=10**9), bytearray(), Random(5)
    file = await spool.open()
    content = random.randbytes(4 * DIRECT_BYTES)
    for _ in range(40):
        start = random.choice([0, 4096, DIRECT_BYTES, random.randrange(6 * DIRECT_BYTES)])
        piece = content[: random.choice([3, 5000, DIRECT_BYTES, DIRECT_BYTES + 7, 3 * DIRECT_BYTES])]
        await file.write(start, piece)
        model.extend(bytes(max(0, start - len(model))))
        model[start : start + len(piece)] = piece
        at = random.randrange(len(model))
        assert await file.read(at, min(at + 10_000, len(model))) == model[at : at + 10_000]
    assert await file.read(0, len(model)) == model
    assert spool.used_bytes == len(model)
    assert list(tmp_path.iterdir()) == []
    file.close()
    assert spool.used_bytes == 0


async def test_a_read_that_a_cut_and_a_growth_overtake_looks_again() -> None:
    async with room() as place:
        writer = place.writer()
        await writer.write(0, data(5 * PART))
        file = writer._spooled._file
        assert file is not None
        read = file.read

        async def overtaken(start: int, stop: int) -> bytes:
            file.read = read  # type: ignore[method-assign]
            await writer.truncate(PART)
            await writer.write(PART, data(6 * PART, 9))
            raise SpoolError("the spool lost bytes")  # as it says when the cut came before the read in its thread

        file.read = overtaken  # type: ignore[method-assign]
        assert await writer.read(Range(0, 4 * PART)) == data(PART) + data(6 * PART, 9)[: 3 * PART]
        await writer.commit()
        writer.close()


# -- through the verbs ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def mount(store: ScriptedStore, tmp_path: Path, **knobs: Any) -> AsyncIterator[Mount]:
    sizes = Knobs(**{"memory": 4096, **knobs})
    async with mounted(store, tmp_path / "index", disk=tmp_path / "blocks", spool=tmp_path / "spool", knobs=sizes) as m:
        yield m
        await m.settle()
        assert not any(m.gauges().values()), m.gauges()


async def test_a_large_object_is_changed_in_place(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("f", data(100))
    async with mount(store, tmp_path) as m:
        ino, fh = await m.open("f", os.O_RDWR)
        await m.fs.write(ino, fh, 50, b"changed")
        want = data(100)[:50] + b"changed" + data(100)[57:]
        assert await m.fs.read(ino, fh, Range(0, 200)) == want
        assert store.body("f") == data(100)
        await m.fs.flush(ino, fh)
        assert store.body("f") == want
        await m.fs.release(ino, fh)
        assert await m.read("f") == want


async def test_a_large_object_that_is_cut_is_copied_down_only_so_far(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("f", data(100))
    async with mount(store, tmp_path, readahead=Knobs().readahead) as m:
        ino = (await m.lookup("f")).ino
        await m.fs.setattr(ino, Changes(size=40))
        assert store.body("f") == data(100)[:40]
        assert store.fetched <= 40 + Knobs().readahead.max_window


async def test_without_a_spool_a_large_object_is_not_changed(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("f", data(100))
    async with mounted(store, tmp_path / "index") as m:
        ino, fh = await m.open("f", os.O_RDWR)
        with pytest.raises(NotSupportedError):
            await m.fs.write(ino, fh, 50, b"changed")
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)


async def test_copying_down_that_fails_leaves_the_object_and_the_handle_as_they_were(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("f", data(100))
    async with mount(store, tmp_path, spool=50) as m:
        ino, fh = await m.open("f", os.O_RDWR)
        with pytest.raises(NoRoomError):
            await m.fs.write(ino, fh, 50, b"changed")
        assert await m.fs.read(ino, fh, Range(0, 100)) == data(100)
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        assert store.body("f") == data(100)


@pytest.mark.parametrize("size", [3, PART, PART + 1, 100])
@pytest.mark.parametrize("settled", [False, True])
async def test_what_was_just_written_is_read_without_a_request(tmp_path: Path, size: int, settled: bool) -> None:
    store = ScriptedStore()
    async with mount(store, tmp_path) as m:
        await m.write("f", data(size))
        if settled:
            await m.settle()
        assert await m.read("f") == data(size)
        assert not store.calls["get"]
    async with mount(store, tmp_path) as again:
        assert await again.read("f") == data(size)
        assert not store.calls["get"], "it came to the disk"


async def test_it_is_also_read_while_it_is_open_for_writing(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with mount(store, tmp_path) as m:
        ino, fh = await m.create("f")
        await m.fs.write(ino, fh, 0, data(100))
        assert await m.fs.read(ino, fh, Range(10, 90)) == data(100)[10:90]
        await m.fs.fsync(ino, fh)
        assert store.body("f") == data(100)
        await m.fs.write(ino, fh, 20, b"after")
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        assert store.body("f") == data(100)[:20] + b"after" + data(100)[25:]
        assert await m.read("f") == store.body("f")
        assert not store.calls["get"]


async def test_what_is_only_cache_gives_way_to_who_writes(tmp_path: Path) -> None:
    """A spool full of what was uploaded is not full."""
    store = ScriptedStore()
    async with mount(store, tmp_path, spool=6 * PART) as m:
        await m.write("first", data(5 * PART))
        ino, fh = await m.create("second")
        await m.fs.write(ino, fh, 0, data(5 * PART, 2))
        await m.fs.write(ino, fh, 3, b"back")
        assert await m.read("first") == data(5 * PART)
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        assert await m.read("second") == data(3, 2) + b"back" + data(5 * PART, 2)[7:]


async def test_what_somebody_replaces_meanwhile_is_not_served_from_the_spool(tmp_path: Path) -> None:
    store = ScriptedStore()
    clock = Clock()
    async with mounted(store, tmp_path / "index", disk=tmp_path / "blocks", spool=tmp_path / "spool", clock=clock) as m:
        await m.write("f", data(100))
        store.put_now("f", b"theirs")
        clock.advance(61)
        assert await m.read("f") == b"theirs"


@pytest.mark.parametrize("size", [3, PART, 100])
@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("what", ["file", "directory", "twice", "open"])
async def test_what_was_written_and_then_renamed_is_not_fetched_either(
    tmp_path: Path, size: int, settled: bool, what: str
) -> None:
    store = ScriptedStore()
    async with mount(store, tmp_path) as m:
        await m.fs.make_directory(1, "d")
        await m.write("d/tmp", data(size))
        if settled:
            await m.settle()
        directory = (await m.lookup("d")).ino
        ino, fh = await m.open("d/tmp")
        if what != "open":
            await m.fs.release(ino, fh)
        if what == "directory":
            await m.fs.rename(1, "d", 1, "e", replace=True)
        else:
            await m.fs.rename(directory, "tmp", 1, "model", replace=True)
        if what == "twice":
            await m.fs.rename(1, "model", 1, "final", replace=True)
        if what == "open":
            assert await m.fs.read(ino, fh, Range(0, size)) == data(size)
            await m.fs.release(ino, fh)
        name = {"file": "model", "directory": "e/tmp", "twice": "final", "open": "model"}[what]
        for _ in range(2):
            assert await m.read(name) == data(size)
            await m.settle()
        assert not store.calls["get"]
    async with mount(store, tmp_path) as m:
        assert await m.read(name) == data(size)
        assert not store.calls["get"]


@pytest.mark.expect_warnings
async def test_a_refusal_that_no_flush_tells_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of a mapping that outlives its descriptor; pages that it left in the kernel are dropped at the next open."""
    store = ScriptedStore()
    store.put_now("f", data(100))
    async with mounted(store, tmp_path / "index") as m:
        ino, fh = await m.open("f", os.O_RDWR)
        assert m.fs.keeps_pages(ino)
        with pytest.raises(NotSupportedError):
            await m.fs.write(ino, fh, 50, b"changed")
        await m.fs.release(ino, fh)
        assert "'f' was changed through a mapping after close, which is lost" in caplog.text
        assert not m.fs.keeps_pages(ino)
        assert m.fs.keeps_pages(ino)
