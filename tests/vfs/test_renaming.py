"""Renaming directories: every object below gets its new key, inode numbers stay, what fails leaves all as it was."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from lazyfs.core.errors import (
    CrossDeviceError,
    ExistsError,
    LazyfsError,
    NoEntryError,
    NotDirectoryError,
    NotEmptyError,
    NotPermittedError,
    StaleError,
    ThrottledError,
    UnreachableError,
    UsageError,
)
from lazyfs.core.types import ROOT_INO, Kind, Range
from lazyfs.store.base import PutOptions
from lazyfs.vfs import copying, renaming
from tests.vfs.building import Mount, mounted
from tests.vfs.stores import ScriptedStore


@asynccontextmanager
async def mount(store: ScriptedStore, tmp_path: Path, **policy: Any) -> AsyncIterator[Mount]:
    async with mounted(store, tmp_path / "index", **policy) as m:
        await m.namespace.refresh()
        yield m


def bucket(store: ScriptedStore) -> dict[str, bytes]:
    return {key: stored.body for key, stored in store._objects.items()}


async def walk(m: Mount, path: str = "") -> dict[str, bytes | None]:
    """Every path that the mount shows, with its content; None for a directory."""
    found: dict[str, bytes | None] = {}
    for name in await m.names(path):
        full = f"{path}/{name}" if path else name
        if (await m.lookup(full)).kind is Kind.DIRECTORY:
            found |= {full: None, **await walk(m, full)}
        else:
            found[full] = await m.read(full)
    return found


async def rename(m: Mount, old: str, new: str, *, replace: bool = True) -> None:
    parent, name = await m.parent_of(old)
    new_parent, new_name = await m.parent_of(new)
    await m.fs.rename(parent, name, new_parent, new_name, replace=replace)


def moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(old + "/") else path


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
trees = st.dictionaries(PATHS, st.binary(max_size=60), max_size=8)
markers = st.sets(PATHS, max_size=3)


@given(trees, markers, st.lists(st.tuples(PATHS, PATHS), min_size=1, max_size=4))
@example({"a/x": b"1", "b/y": b"2"}, set(), [("a", "b/a")])
def test_whatever_is_renamed_is_where_a_local_file_system_would_have_it(
    files: dict[str, bytes], made: set[str], renames: list[tuple[str, str]]
) -> None:
    # A path is a file or a directory.
    files = {path: body for path, body in files.items() if not any(p.startswith(path + "/") for p in (*files, *made))}
    made = {path for path in made if not any(path == p or path.startswith(p + "/") for p in files)}
    store = ScriptedStore()
    for path, body in files.items():
        store.put_now(path, body)
    for path in made:
        store.put_now(path + "/", b"")

    async def main(directory: Path) -> None:
        async with mount(store, directory) as m:
            model = await walk(m)
            inos = {path: (await m.lookup(path)).ino for path in model}
            for old, new in renames:
                try:
                    await rename(m, old, new)
                except LazyfsError:
                    assert await walk(m) == model
                    continue
                if old == new:
                    continue
                assert old in model
                for path in [path for path in model if moved(path, new, "\0") != path]:
                    del model[path]
                    del inos[path]
                model = {moved(path, old, new): body for path, body in model.items()}
                inos = {moved(path, old, new): ino for path, ino in inos.items()}
                found = await walk(m)
                # A directory without a marker is gone with the last that lay in it.
                assert {path: body for path, body in found.items() if body is not None} == {
                    path: body for path, body in model.items() if body is not None
                }
                assert found.keys() <= model.keys()
                model = found
                assert {path: (await m.lookup(path)).ino for path in found} == {path: inos[path] for path in found}
            held = {path: body for path, body in bucket(store).items() if not path.endswith("/")}
            assert held == {path: body for path, body in model.items() if body is not None}

    with TemporaryDirectory(dir="/dev/shm") as directory:
        trio.run(main, Path(directory))


async def test_a_file_of_a_directory_bucket_is_renamed_in_one_step(tmp_path: Path) -> None:
    store = ScriptedStore(renames=True)
    store.put_now("from", b"bytes")
    store.put_now("to", b"in the way")
    async with mount(store, tmp_path) as m:
        assert await m.read("from") == b"bytes"
        store.requests.clear()
        await rename(m, "from", "to")
        assert [request.verb for request in store.requests] == ["rename"]
        assert await m.read("to") == b"bytes"
        assert [request.verb for request in store.requests] == ["rename"], "what was resident is resident"
        store.put_now("theirs", b"1")
        await m.namespace.refresh()
        store.put_now("theirs", b"2")
        with pytest.raises(StaleError):
            await rename(m, "theirs", "ours")
    assert bucket(store) == {"to": b"bytes", "theirs": b"2"}


async def test_a_checkpoint_is_published_as_the_hf_trainer_does_it(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with mount(store, tmp_path) as m:
        await m.fs.make_directory(ROOT_INO, "tmp-checkpoint-10")
        for name in ("model", "optimizer"):
            await m.write(f"tmp-checkpoint-10/{name}", name.encode() * 20)
        ino, fh = await m.create("tmp-checkpoint-10/trainer_state.json")
        await m.fs.write(ino, fh, 0, b"{}")
        await rename(m, "tmp-checkpoint-10", "checkpoint-10")
        assert await walk(m) == {
            "checkpoint-10": None,
            "checkpoint-10/model": b"model" * 20,
            "checkpoint-10/optimizer": b"optimizer" * 20,
            "checkpoint-10/trainer_state.json": b"{}",
        }
        await m.fs.write(ino, fh, 2, b"!")
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        assert bucket(store)["checkpoint-10/trainer_state.json"] == b"{}!"
        assert not [key for key in bucket(store) if key.startswith("tmp")]


async def test_who_has_a_file_open_goes_on_reading(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("d/e/f", bytes(range(200)))
    async with mount(store, tmp_path) as m:
        ino, fh = await m.open("d/e/f")
        await rename(m, "d", "moved")
        assert await m.fs.read(ino, fh, Range(0, 200)) == bytes(range(200))
        assert (await m.fs.getattr(ino)).size == 200
        await m.fs.release(ino, fh)


async def test_the_large_objects_go_first(tmp_path: Path) -> None:
    store = ScriptedStore()
    for name, size in {"d/.metadata": 3, "d/big": 90, "d/middle": 50}.items():
        store.put_now(name, bytes(size))
    async with mount(store, tmp_path) as m:
        listed = await m.fs._renamer._listed("d/")
        assert [info.key for info in listed] == ["d/big", "d/middle", "d/.metadata"]


async def test_a_copy_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    store = ScriptedStore()
    for number in range(40):
        store.put_now(f"d/{number}", bytes(number + 1))
    store.put_now("empty/", b"")
    before = bucket(store)
    async with mount(store, tmp_path) as m:
        store.fail("copy", 20, ThrottledError("no"))
        with pytest.raises(ThrottledError):
            await rename(m, "d", "new")
        assert bucket(store) == before
        assert len(await m.names("d")) == 40
        with pytest.raises(NoEntryError):
            await m.lookup("new")
        await rename(m, "d", "empty")
        assert len(await m.names("empty")) == 40


async def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore()
    for key in ("d/e/f", "full/x", "file", "empty/", "large/one", "large/two", "large/three"):
        store.put_now(key, b"content")
    before = bucket(store)
    async with mount(store, tmp_path) as m:
        for error, new in ((UsageError, "d/e/d"), (NotEmptyError, "full"), (NotDirectoryError, "file")):
            with pytest.raises(error):
                await rename(m, "d", new)
        with pytest.raises(ExistsError):
            await rename(m, "d", "empty", replace=False)
        monkeypatch.setattr(renaming, "MAX_OBJECTS", 2)
        with pytest.raises(CrossDeviceError):
            await rename(m, "large", "new")
        assert bucket(store) == before
    async with mount(store, tmp_path, no_delete=True) as m:
        with pytest.raises(NotPermittedError):
            await rename(m, "d", "new")
        assert bucket(store) == before


async def test_objects_that_the_mount_does_not_show_come_along(tmp_path: Path) -> None:
    store = ScriptedStore()
    for key in ("d/f", "d//odd", "d/e/", "d/../up"):
        store.put_now(key, key.encode())
    async with mount(store, tmp_path) as m:
        await rename(m, "d", "new")
        assert bucket(store) == {f"new{key[1:]}": key.encode() for key in ("d/f", "d//odd", "d/e/", "d/../up")}


async def test_a_rename_is_remembered_by_the_next_mount(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("d/e/f", b"content")
    async with mount(store, tmp_path) as m:
        ino, fh = await m.open("d/e/f", os.O_RDONLY)
        await m.fs.release(ino, fh)
        await rename(m, "d", "new")
    async with mounted(store, tmp_path / "index") as m:
        assert await walk(m) == {"new": None, "new/e": None, "new/e/f": b"content"}


@pytest.mark.parametrize("verb", ["copy", "delete"])
@pytest.mark.parametrize("done", [0, 1, 7, 19])
async def test_a_rename_that_a_kill_interrupts_is_finished_by_the_next_mount(
    tmp_path: Path, verb: str, done: int
) -> None:
    store = ScriptedStore()
    for number in range(20):
        store.put_now(f"d/{number:02}", bytes(number + 1))
    store.put_now("d/", b"")
    async with mount(store, tmp_path) as m:
        journal = m.fs._renamer._journal
        objects = await m.fs._renamer._listed("d/")
        await journal.begin("d/", "new/", objects)
        for info in objects if verb == "delete" else objects[:done]:
            if info.key.endswith("/"):
                store.put_now("new/", b"")
            else:
                await store.copy(info.oid, "new/" + info.key[2:])
        for info in objects[:done] if verb == "delete" else ():
            await store.delete(info.key)
    store.put_now("d/05", b"somebody wrote this meanwhile")
    async with mount(store, tmp_path) as m:
        held = bucket(store)
        assert held.pop("d/05") == b"somebody wrote this meanwhile"
        theirs = held.pop("new/05", bytes(6))
        assert theirs == bytes(6)
        assert held == {"new/": b""} | {f"new/{number:02}": bytes(number + 1) for number in range(20) if number != 5}
        await m.fs._renamer._journal.finish(store, m.fs._renamer._copier)
        assert bucket(store).keys() - {"new/05"} == {*held, "d/05"}


@pytest.mark.expect_warnings
async def test_what_cannot_be_finished_now_is_left_for_the_next_mount(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("d/f", b"content")
    async with mount(store, tmp_path) as m:
        await m.fs._renamer._journal.begin("d/", "new/", await m.fs._renamer._listed("d/"))
    store.fail("copy", 1, ThrottledError("not now"))
    async with mount(store, tmp_path):
        assert bucket(store) == {"d/f": b"content"}
    async with mount(store, tmp_path):
        assert bucket(store) == {"new/f": b"content"}


async def test_after_a_rename_that_ended_nothing_is_left_to_finish(tmp_path: Path) -> None:
    store = ScriptedStore()
    for key in ("d/f", "e/f"):
        store.put_now(key, b"content")
    async with mount(store, tmp_path) as m:
        await rename(m, "d", "new")
        store.fail("copy", 2, ThrottledError("no"))
        with pytest.raises(ThrottledError):
            await rename(m, "e", "newer")
        assert not m.fs._renamer._journal._renames


@pytest.mark.parametrize("killed", [False, True])
async def test_a_directory_object_that_has_content_keeps_it(tmp_path: Path, *, killed: bool) -> None:
    """Some programs write into `dir/`; only an empty one is a mere marker."""
    store = ScriptedStore()
    for key in ("d/", "d/e/", "d/f"):
        store.put_now(key, b"content of " + key.encode() if key != "d/e/" else b"")
    async with mount(store, tmp_path) as m:
        if killed:
            await m.fs._renamer._journal.begin("d/", "new/", await m.fs._renamer._listed("d/"))
        else:
            await rename(m, "d", "new")
    async with mount(store, tmp_path):
        assert bucket(store) == {"new/": b"content of d/", "new/e/": b"", "new/f": b"content of d/f"}


# -- large objects ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request copies 8 bytes, a part has 4."""
    monkeypatch.setattr(copying, "AT_ONCE_BYTES", 8)
    monkeypatch.setattr(copying, "PART_BYTES", 4)


@pytest.mark.usefixtures("small_copies")
async def test_a_large_object_is_copied_in_parts_with_what_it_says(tmp_path: Path) -> None:
    store = ScriptedStore()
    options = PutOptions(content_type="text/plain", metadata={"colour": "red"}, storage_class="STANDARD_IA")
    await store.put("d/large", b"0123456789", options=options)
    await store.put("d/small", b"01234567")
    async with mount(store, tmp_path) as m:
        await rename(m, "d", "new")
        assert bucket(store) == {"new/large": b"0123456789", "new/small": b"01234567"}
        info = await store.head("new/large")
        assert (info.content_type, info.metadata, info.storage_class) == (
            "text/plain",
            {"colour": "red"},
            "STANDARD_IA",
        )
        await rename(m, "new/large", "file")
        assert await m.read("file") == b"0123456789"
    assert store.uploads == 0


@pytest.mark.usefixtures("small_copies")
async def test_a_copy_in_parts_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = ScriptedStore()
    await store.put("large", b"0123456789")
    store.fail("copy_part", 2, UnreachableError("away"))
    async with mount(store, tmp_path) as m:
        with pytest.raises(UnreachableError):
            await rename(m, "large", "new")
        assert bucket(store) == {"large": b"0123456789"}
        assert await m.read("large") == b"0123456789"
    assert store.uploads == 0


@given(st.integers(1, 60 * 2**40))
def test_the_parts_of_a_copy_are_all_of_it_and_few_enough(size: int) -> None:
    ranges = copying._cut(size)
    assert [(ranges[0].start, ranges[-1].stop)] == [(0, size)]
    assert all(before.stop == after.start for before, after in itertools.pairwise(ranges))
    assert len(ranges) <= 10_000
    assert max(span.size for span in ranges) <= max(copying.PART_BYTES, -(-size // 10_000))


@pytest.mark.parametrize("old", ["f", "d"])
async def test_news_of_a_rename_that_is_under_way_change_nothing(tmp_path: Path, old: str) -> None:
    """Events tell of the deleted source before the index knows the new name."""
    store = ScriptedStore()
    for key in ("f", "d/x", "d/deep/y"):
        store.put_now(key, key.encode())
    async with mount(store, tmp_path) as m:
        before = {path.removeprefix(old): body for path, body in (await walk(m)).items() if path.startswith(old)}
        ino = (await m.lookup(old)).ino
        moving, told = m.namespace.move, []

        async def hear_first(*args: Any, **kwargs: Any) -> Any:
            for key in [*bucket(store), "f", "d/x", "d/deep/y"]:
                await m.namespace.learn(key)
                told.append(key)
            return await moving(*args, **kwargs)

        m.namespace.move = hear_first  # type: ignore[method-assign]
        await rename(m, old, "new")
        assert told
        found = await walk(m)
        assert {path.removeprefix("new"): body for path, body in found.items() if path.startswith("new")} == before
        assert (await m.lookup("new")).ino == ino
        assert old not in await m.names()
        store.put_now("new/later" if old == "d" else "new", b"foreign")
        await m.namespace.learn("new/later" if old == "d" else "new")
        assert await m.read("new/later" if old == "d" else "new") == b"foreign"
