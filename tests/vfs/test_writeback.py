"""Write-back: close() returns when the bytes are durable here; the bucket gets them later, in an order that holds."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from lazyfs.core.errors import NoEntryError, UnreachableError
from lazyfs.core.types import ROOT_INO, Buffer, Changes, ObjectId, Range
from lazyfs.vfs.lost import LOST
from tests.vfs.building import Mount, mounted
from tests.vfs.stores import ScriptedStore

LARGE = bytes(range(100))
"""More than a part of 16 bytes."""


@contextlib.asynccontextmanager
async def back(store: ScriptedStore, tmp_path: Path, **options: Any) -> AsyncIterator[Mount]:
    async with mounted(
        store, tmp_path / "index.db", spool=tmp_path / "spool", write_back=tmp_path / "back", **options
    ) as m:
        yield m


async def rename(m: Mount, old: str, new: str) -> None:
    parent, name = await m.parent_of(old)
    new_parent, new_name = await m.parent_of(new)
    await m.fs.rename(parent, name, new_parent, new_name, replace=True)


async def unlink(m: Mount, path: str) -> None:
    await m.fs.unlink(*await m.parent_of(path))


async def has(m: Mount, path: str) -> bool:
    try:
        await m.lookup(path)
    except NoEntryError:
        return False
    return True


def bodies(store: ScriptedStore) -> dict[str, bytes]:
    return {key: bytes(found.body) for key, found in store._objects.items()}


@pytest.mark.parametrize("content", [b"", b"small", LARGE])
async def test_what_was_closed_is_read_here_before_the_bucket_has_it_and_after(tmp_path: Path, content: bytes) -> None:
    store = ScriptedStore()
    release = store.hold("put"), store.hold("create")
    async with back(store, tmp_path) as m:
        ino = await m.write("f", content)
        assert bodies(store) == {}
        assert await m.read("f") == content
        assert (await m.lookup("f")).size == len(content)
        assert await m.names() == ["f"]
        for event in release:
            event.set()
        await m.settle()
        assert bodies(store) == {"f": content}
        assert (await m.lookup("f")).ino == ino
        assert await m.read("f") == content
        assert store.fetched == 0
    assert store.uploads == 0
    assert [path.name for path in (tmp_path / "back").glob("*.data")] == []


@pytest.mark.parametrize("content", [b"small", LARGE])
async def test_who_reads_while_it_is_taken_over_waits_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """One thread calls fsync or close, another reads."""
    async with back(ScriptedStore(), tmp_path) as m:
        assert m.backlog is not None
        put, taken, go = m.backlog.put, trio.Event(), trio.Event()

        async def held(*args: Any, **kwargs: Any) -> None:
            taken.set()
            await go.wait()
            await put(*args, **kwargs)

        monkeypatch.setattr(m.backlog, "put", held)
        ino, fh = await m.create("f")
        _, reading = await m.open("f")
        await m.fs.write(ino, fh, 0, content)
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await m.fs.read(ino, reading, Range(0, 1000))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.fs.flush, ino, fh)
            await taken.wait()
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.05)
            go.set()
        assert found == [content]
        await m.fs.release(ino, fh)
        await m.fs.release(ino, reading)
        await m.settle()


async def test_what_landed_under_its_second_name_first_is_not_fetched_either(tmp_path: Path) -> None:
    """A directory is renamed while an upload in it is under way, and the upload to the new name is there before the
    first one has been withdrawn."""
    store = ScriptedStore()
    create, abort = store.hold("create"), store.hold("abort")
    async with back(store, tmp_path, disk=tmp_path / "blocks") as m:
        await m.fs.make_directory(ROOT_INO, "d")
        await m.write("d/f", LARGE)
        await trio.testing.wait_all_tasks_blocked(0.02)
        await rename(m, "d", "e")
        create.set()
        with trio.fail_after(10):
            while bodies(store).get("e/f") != LARGE:
                await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.05)
        abort.set()
        await m.settle()
        assert await m.read("e/f") == LARGE
        assert store.fetched == 0
    assert [path.name for path in (tmp_path / "back").glob("*.data")] == []


@pytest.mark.expect_warnings
async def test_a_daemon_that_dies_leaves_it_to_the_next(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.hold("put"), store.hold("part")
    with trio.CancelScope() as scope:
        async with back(store, tmp_path) as m:
            await m.fs.make_directory(ROOT_INO, "d")
            await m.write("d/small", b"small")
            await m.write("d/large", LARGE)
            scope.cancel()
            await trio.sleep_forever()
    again = ScriptedStore()
    again._objects = store._objects
    again.hold("put")
    with trio.CancelScope() as scope:
        async with back(again, tmp_path) as m:
            assert sorted(await m.names("d")) == ["large", "small"]
            assert await m.read("d/large") == LARGE
            assert await m.read("d/small") == b"small"
            scope.cancel()
            await trio.sleep_forever()
    last = ScriptedStore()
    last._objects = again._objects
    async with back(last, tmp_path) as m:
        await m.settle()
    assert bodies(last) == {"d/": b"", "d/small": b"small", "d/large": LARGE}


async def test_the_index_of_a_checkpoint_is_never_in_the_bucket_before_its_shards(tmp_path: Path) -> None:
    store = ScriptedStore()
    held = store.hold("complete")
    async with back(store, tmp_path) as m:
        await m.write("shard", LARGE)
        await m.write("index", b"{}")
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert "index" not in bodies(store)
        held.set()
        await m.settle()
        assert set(bodies(store)) == {"shard", "index"}


async def test_an_old_checkpoint_goes_after_the_new_one_came_and_never_shows_here(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with back(store, tmp_path) as m:
        await m.fs.make_directory(ROOT_INO, "old")
        await m.write("old/shard", b"old")
        await m.settle()
        held = store.hold("complete")
        await m.write("new", LARGE)
        await unlink(m, "old/shard")
        await m.fs.remove_directory(ROOT_INO, "old")
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert set(bodies(store)) == {"old/", "old/shard"}
        await m.namespace.refresh()
        assert await m.names() == ["new"]
        assert not await has(m, "old")
        held.set()
        await m.settle()
        assert set(bodies(store)) == {"new"}
        await m.namespace.refresh()
        assert await m.names() == ["new"]


async def test_a_checkpoint_is_renamed_before_it_is_uploaded_for_nothing(tmp_path: Path) -> None:
    store = ScriptedStore()
    held = [store.hold(verb) for verb in ("put", "create")]
    async with back(store, tmp_path) as m:
        await m.fs.make_directory(ROOT_INO, "tmp")
        await m.write("tmp/shard", LARGE)
        await m.write("tmp/index", b"{}")
        await rename(m, "tmp", "final")
        assert sorted(await m.names("final")) == ["index", "shard"]
        assert not await has(m, "tmp")
        assert await m.read("final/shard") == LARGE
        for event in held:
            event.set()
        await m.settle()
        assert set(bodies(store)) - {"final/"} == {"final/shard", "final/index"}
        assert store.calls["copy"] == 0
        await m.namespace.refresh()
        assert await m.names() == ["final"]
        assert await m.read("final/index") == b"{}"


async def test_a_checkpoint_is_renamed_while_half_of_it_is_uploaded(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with back(store, tmp_path) as m:
        await m.fs.make_directory(ROOT_INO, "tmp")
        await m.write("tmp/first", LARGE)
        await m.settle()
        held = store.hold("part")
        await m.write("tmp/second", LARGE[::-1])
        await m.write("tmp/index", b"{}")
        await trio.testing.wait_all_tasks_blocked(0.05)
        await rename(m, "tmp", "final")
        assert sorted(await m.names("final")) == ["first", "index", "second"]
        assert await m.read("final/first") == LARGE
        assert await m.read("final/second") == LARGE[::-1]
        held.set()
        await m.settle()
        found = bodies(store)
        assert {key: found[key] for key in found if key[-1] != "/"} == {
            "final/first": LARGE,
            "final/second": LARGE[::-1],
            "final/index": b"{}",
        }
        assert store.uploads == 0
        await m.namespace.refresh()
        assert sorted(await m.names("final")) == ["first", "index", "second"]
        assert await m.names() == ["final"]


async def test_only_the_last_of_many_versions_goes_up(tmp_path: Path) -> None:
    store = ScriptedStore()
    held = store.hold("put")
    async with back(store, tmp_path) as m:
        await m.write("log", b"0")
        await trio.testing.wait_all_tasks_blocked(0.05)
        for number in range(1, 10):
            await m.write("log", b"%d" % number)
        assert await m.read("log") == b"9"
        held.set()
        await m.settle()
        assert bodies(store) == {"log": b"9"}
        assert store.calls["put"] == 2


async def test_a_file_that_is_gone_again_never_reaches_the_bucket(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.fail("put", 1, UnreachableError("away"))
    held = store.hold("complete")
    async with back(store, tmp_path) as m:
        await m.write("shard", LARGE)
        await m.write("tmp", b"x")  # waits for the shard
        await unlink(m, "tmp")
        assert not await has(m, "tmp")
        held.set()
        await m.settle()
        assert (store.calls["put"], store.calls["delete"]) == (0, 0)


async def test_rename_over_a_file_that_is_being_uploaded(tmp_path: Path) -> None:
    store = ScriptedStore()
    held = store.hold("put")
    async with back(store, tmp_path) as m:
        await m.write("latest", b"old")
        await trio.testing.wait_all_tasks_blocked(0.05)
        await m.write("latest.tmp", b"new")
        await rename(m, "latest.tmp", "latest")
        assert await m.read("latest") == b"new"
        assert await m.names() == ["latest"]
        held.set()
        await m.settle()
        assert bodies(store) == {"latest": b"new"}
        assert await m.read("latest") == b"new"


async def test_names_that_go_round_end_where_they_should(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with back(store, tmp_path) as m:
        await m.write("a", b"A")
        await m.write("b", LARGE)
        await m.settle()
        held = store.hold("copy")
        await rename(m, "a", "t")
        await rename(m, "b", "a")
        assert await m.read("a") == LARGE
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rename, m, "t", "b")  # waits for the copy
            await trio.testing.wait_all_tasks_blocked(0.05)
            held.set()
        assert await m.read("b") == b"A"
        await m.settle()
        assert bodies(store) == {"a": LARGE, "b": b"A"}


async def test_a_new_file_takes_the_name_of_one_that_is_being_renamed(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with back(store, tmp_path) as m:
        await m.write("a", b"old")
        await m.settle()
        held = store.hold("copy")
        await rename(m, "a", "b")
        await m.write("a", b"new")
        assert (await m.read("a"), await m.read("b")) == (b"new", b"old")
        held.set()
        await m.settle()
        assert bodies(store) == {"a": b"new", "b": b"old"}


@pytest.mark.expect_warnings
async def test_what_cannot_be_uploaded_is_tried_until_it_can(tmp_path: Path) -> None:
    store = ScriptedStore()
    for number in range(1, 6):
        store.fail("put", number, UnreachableError("away"))
    async with back(store, tmp_path) as m:
        await m.write("f", b"x")
        await m.settle()
        assert bodies(store) == {"f": b"x"}
        assert m.backlog is not None
        assert not m.backlog.failures


@pytest.mark.expect_warnings
async def test_an_answer_that_was_lost_is_not_a_race(tmp_path: Path) -> None:
    class Lossy(ScriptedStore):
        async def put(self, key: str, body: Any, **options: Any) -> str:
            etag = await super().put(key, body, **options)
            if self.calls["put"] == 1:
                raise UnreachableError("the answer was lost")
            return etag

    store = Lossy()
    async with back(store, tmp_path) as m:
        await m.write("f", b"x")
        await m.settle()
        assert bodies(store) == {"f": b"x"}
        assert m.fs.lost == []


@pytest.mark.expect_warnings
@pytest.mark.parametrize("content", [b"ours", LARGE])
async def test_who_loses_the_race_finds_the_file_in_lost_and_found(tmp_path: Path, content: bytes) -> None:
    store = ScriptedStore()
    held = [store.hold("put"), store.hold("complete")]
    async with back(store, tmp_path) as m:
        await m.write("f", content)
        other = ScriptedStore()
        other._objects = store._objects
        await other.put("f", b"theirs")
        for event in held:
            event.set()
        await m.settle()
        assert await m.read("f") == b"theirs"
        ((key, place),) = m.fs.lost
        assert key == "f"
        assert bodies(store) == {"f": b"theirs", place: content}
        assert await m.read(place) == content
        assert place.startswith(LOST + "/")


async def test_a_file_is_changed_while_it_waits(tmp_path: Path) -> None:
    store = ScriptedStore()
    held = store.hold("create")
    async with back(store, tmp_path) as m:
        await m.write("f", LARGE)
        await trio.testing.wait_all_tasks_blocked(0.05)
        ino, fh = await m.open("f", os.O_RDWR)
        await m.fs.write(ino, fh, 3, b"patched")
        await m.fs.flush(ino, fh)
        patched = LARGE[:3] + b"patched" + LARGE[10:]
        assert await m.fs.read(ino, fh, Range(0, 200)) == patched
        await m.fs.release(ino, fh)
        held.set()
        await m.settle()
        assert bodies(store) == {"f": patched}


async def test_a_file_is_changed_while_its_upload_lands(tmp_path: Path) -> None:
    store = ScriptedStore()
    held = store.hold("put")
    async with back(store, tmp_path) as m:
        await m.write("f", b"first")
        ino, fh = await m.open("f", os.O_RDWR)
        await m.fs.write(ino, fh, 0, b"F")
        held.set()
        await m.settle()
        assert bodies(store) == {"f": b"first"}
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        await m.settle()
        assert bodies(store) == {"f": b"First"}
        assert m.fs.lost == []


async def test_fsync_may_be_told_to_wait_for_the_bucket(tmp_path: Path) -> None:
    store = ScriptedStore()
    held = store.hold("put")
    async with back(store, tmp_path, fsync_to_bucket=True) as m:
        ino, fh = await m.create("f")
        await m.fs.write(ino, fh, 0, b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.fs.fsync, ino, fh)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(nursery.child_tasks) == 1
            held.set()
        assert bodies(store) == {"f": b"x"}
        await m.fs.release(ino, fh)


# -- what a file says besides its bytes ------------------------------------------------------------------------------


async def chmod(m: Mount, path: str, mode: int) -> None:
    await m.fs.setattr((await m.lookup(path)).ino, Changes(mode=mode))


async def mode_of(m: Mount, path: str) -> int:
    return stat.S_IMODE((await m.lookup(path)).mode)


def says(store: ScriptedStore, key: str) -> str:
    return store._objects[key].metadata.get("file-permissions", "")


async def test_a_mode_that_is_set_while_the_file_waits_goes_along(tmp_path: Path) -> None:
    store = ScriptedStore()
    held = store.hold("complete")
    async with back(store, tmp_path) as m:
        await m.write("shard", LARGE)
        await m.write("script", b"#!")  # waits for the shard
        await chmod(m, "script", 0o755)
        assert await mode_of(m, "script") == 0o755
        held.set()
        await m.settle()
        assert says(store, "script") == "0100755"
        assert await mode_of(m, "script") == 0o755
        assert store.calls["set_metadata"] == 0


async def test_a_mode_that_is_set_while_the_file_is_sent_is_told_afterwards(tmp_path: Path) -> None:
    store = ScriptedStore()
    held = store.hold("put")
    async with back(store, tmp_path) as m:
        await m.write("script", b"#!")
        await trio.testing.wait_all_tasks_blocked(0.05)
        await chmod(m, "script", 0o700)
        held.set()
        await m.settle()
        assert says(store, "script") == "0100700"
        assert await mode_of(m, "script") == 0o700
        assert await m.read("script") == b"#!"
        assert m.fs.lost == []


async def test_modes_and_links_survive_the_daemon(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.hold("put")
    with trio.CancelScope() as scope:
        async with back(store, tmp_path) as m:
            await m.fs.make_directory(ROOT_INO, "d")
            await chmod(m, "d", 0o700)
            await m.write("d/script", b"#!")
            await chmod(m, "d/script", 0o755)
            await m.fs.make_link(ROOT_INO, "latest", b"d/script")
            scope.cancel()
            await trio.sleep_forever()
    again = ScriptedStore()
    again._objects = store._objects
    async with mounted(again, tmp_path / "another.db", spool=tmp_path / "spool", write_back=tmp_path / "back") as m:
        assert await mode_of(m, "d/script") == 0o755
        assert await mode_of(m, "d") == 0o700
        link = await m.lookup("latest")
        assert stat.S_ISLNK(link.mode)
        assert await m.fs.read_link(link.ino) == b"d/script"
        await m.settle()
        assert await m.fs.read_link((await m.lookup("latest")).ino) == b"d/script"
    assert (says(again, "d/"), says(again, "d/script"), says(again, "latest")) == ("0040700", "0100755", "0120777")
    assert bodies(again)["latest"] == b"d/script"


async def test_a_link_takes_the_name_of_what_is_still_to_be_deleted(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with back(store, tmp_path) as m:
        await m.write("latest", b"old")
        await m.settle()
        held = store.hold("complete")
        await m.write("shard", LARGE)
        await unlink(m, "latest")
        await m.fs.make_link(ROOT_INO, "latest", b"shard")
        held.set()
        await m.settle()
        assert bodies(store) == {"shard": LARGE, "latest": b"shard"}


async def test_attributes_of_what_waits(tmp_path: Path) -> None:
    store = ScriptedStore()
    held = store.hold("put")
    async with back(store, tmp_path, xattrs=True) as m:
        ino = await m.write("f", b"x")
        await trio.testing.wait_all_tasks_blocked(0.05)
        await m.fs.xattrs.set(ino, b"user.note", b"yes")
        assert await m.fs.xattrs.get(ino, b"user.note") == b"yes"
        held.set()
        await m.settle()
        assert await m.fs.xattrs.names(ino) == [b"user.note"]
        assert store._objects["f"].metadata["note"] == "yes"


@pytest.mark.parametrize("write_back", [False, True])
async def test_the_name_of_an_object_tells_its_type(tmp_path: Path, write_back: bool) -> None:
    store = ScriptedStore()
    options = {"write_back": tmp_path / "back"} if write_back else {}
    async with mounted(store, tmp_path / "index.db", spool=tmp_path / "spool", **options) as m:
        await m.write("index.json", b"{}")
        await m.write("page.html", LARGE)
        await m.settle()
    assert store._objects["index.json"].content_type == "application/json"
    assert store._objects["page.html"].content_type == "text/html"


async def test_an_upload_that_lands_while_the_file_is_taken_up_again_is_no_lost_race(tmp_path: Path) -> None:
    """Its content is copied before its first change, which takes a while."""
    store = ScriptedStore()
    held = store.hold("complete")
    async with back(store, tmp_path) as m:
        await m.write("f", LARGE)
        ino, fh = await m.open("f", os.O_RDWR)
        assert m.backlog is not None
        reading, drained = m.fetcher._waiting, m.backlog.drained

        async def landing(content: ObjectId, span: Range) -> Buffer | None:
            held.set()
            await drained()
            return await reading(content, span)

        m.fetcher._waiting = landing
        await m.fs.write(ino, fh, 0, b"x")
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        await m.settle()
        assert bodies(store) == {"f": b"x" + LARGE[1:]}


@pytest.mark.parametrize("index", ["index.db", "another.db"])
async def test_a_time_that_is_set_while_the_file_waits_survives_the_daemon(tmp_path: Path, index: str) -> None:
    """As rsync sets it, after the close; also where a mode was set before."""
    store, time_ns = ScriptedStore(), 10**18 + 5
    store.hold("put")
    with trio.CancelScope() as scope:
        async with back(store, tmp_path) as m:
            await m.fs.make_directory(ROOT_INO, "d")
            for name in ("time", "both"):
                await m.write(name, b"content")
            await chmod(m, "both", 0o600)
            for name in ("time", "both", "d"):
                await m.fs.setattr((await m.lookup(name)).ino, Changes(mtime_ns=time_ns))
            scope.cancel()
            await trio.sleep_forever()
    again = ScriptedStore()
    async with mounted(again, tmp_path / index, spool=tmp_path / "spool", write_back=tmp_path / "back") as m:
        for name in ("time", "both", "d"):
            assert (await m.lookup(name)).mtime_ns == time_ns, name
        await m.settle()
    assert {key: found.metadata["file-mtime"] for key, found in again._objects.items()} == dict.fromkeys(
        ("both", "d/", "time"), f"{time_ns}ns"
    )
