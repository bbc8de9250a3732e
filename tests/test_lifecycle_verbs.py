"""The lifecycle verbs at their edges: rubbish that is asked, and answers that must stay short."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from lazyfs.control.protocol import MAX_LINE, encode_result
from lazyfs.core.errors import LazyfsError, NoEntryError
from lazyfs.core.types import Range
from lazyfs.lifecycle import entries
from lazyfs.lifecycle.verbs import Lifecycle
from tests.vfs.building import Knobs, Mount, mounted
from tests.vfs.stores import ScriptedStore


@asynccontextmanager
async def room(store: ScriptedStore, tmp_path: Path, **knobs: int) -> AsyncIterator[tuple[Mount, dict[str, Any]]]:
    sizes = Knobs(**{"memory": 2**20, **knobs})
    async with mounted(store, tmp_path / "index", disk=tmp_path / "blocks", ttl_s=float("inf"), knobs=sizes) as m:
        await m.namespace.refresh()
        made = Lifecycle(m.fs, index=m.index, fetcher=m.fetcher, cache=m.cache, backlog=m.backlog, nursery=m.nursery)
        yield m, made.verbs()


async def all_of(verbs: dict[str, Any], **arguments: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        answer = await verbs["entries"]({"after": after, **arguments})
        assert len(encode_result(answer)) <= MAX_LINE
        found += answer["entries"]
        after = answer["after"]
    return found


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("entries", {"path": 5}),
        ("entries", {"path": "", "after": [1]}),
        ("entries", {"path": "", "selection": [1]}),
        ("entries", {"path": "", "selection": {"states": 5}}),
        ("entries", {"path": "", "selection": {"name": 5}}),
        ("entries", {"path": "", "selection": {"smallest": "x"}}),
        ("entries", {"path": "../etc"}),
        ("entries", {"path": "no//where"}),
        ("entries", {"path": "f/x"}),
        ("list", {"items": 5}),
        ("list", {"items": [["a", "b"]]}),
        ("list", {"items": [[1]]}),
        ("list", {"items": [], "list": 99}),
        ("list", {"items": [], "list": "x"}),
        ("preload", {}),
        ("preload", {"list": 99}),
        ("preload", {"list": [1]}),
        ("release", {}),
        ("release", {"inos": ["x"]}),
        ("release", {"inos": [1] * 1001}),
        ("release", {"inos": [2**70]}),
        ("release", {"inos": [-(2**70)]}),
        ("list", {"items": [[2**70, "f\udcff"]], "list": 2**70}),
        ("entries", {"path": "f\0"}),
        ("entries", {"path": "\udcff"}),
        ("entries", {"path": "", "selection": {"smallest": "x" * 9}}),
        ("task", {}),
        ("task", {"id": []}),
        ("cancel", {"id": "x"}),
        ("sync", {"path": 5}),
        ("pending", {"path": "none"}),
    ],
)
async def test_rubbish_is_refused_in_one_line(verb: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("f", b"x")
    async with room(store, tmp_path) as (_, verbs):
        with pytest.raises(LazyfsError) as caught:
            await verbs[verb](arguments)
        assert len(str(caught.value).splitlines()) == 1


async def test_names_that_json_makes_long_come_in_more_pages(tmp_path: Path) -> None:
    store = ScriptedStore()
    keys = [f"{chr(1) * 200}/{chr(2) * 200}/{chr(3) * 200}/{number:03}{chr(4) * 190}" for number in range(300)]
    for key in keys:
        store.put_now(key, b"x")
    async with room(store, tmp_path) as (_, verbs):
        found = await all_of(verbs, path="", recursive=True)
        assert [one["path"] for one in found if one["kind"] == "file"] == keys


async def test_of_many_ranges_the_rest_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "FILE_RANGES", 3)
    store = ScriptedStore()
    store.put_now("f", bytes(400))
    async with room(store, tmp_path) as (m, verbs):
        ino, fh = await m.open("f")
        for start in range(0, 400, 80):
            m.fs.handles.file(fh).file.object = None  # no read-ahead
            await m.fs.read(ino, fh, Range(start, start + 1))
        await m.fs.release(ino, fh)
        await m.settle()
        (one,) = await all_of(verbs, path="f")
        assert [len(ranges) for ranges in one["ranges"].values()] == [3, 3]
        assert one["ranges_left_off"] == 4
        assert one["resident"] == 40


async def test_large_files_come_in_more_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "PAGE_BLOCKS", 30)
    store = ScriptedStore()
    for number in range(5):
        store.put_now(f"f{number}", bytes(100 + 200 * (number == 2)))
    async with room(store, tmp_path) as (_, verbs):
        answer = await verbs["entries"]({"path": ""})
        assert [one["path"] for one in answer["entries"]] == ["f0", "f1"]
        assert [one["path"] for one in await all_of(verbs, path="")] == [f"f{number}" for number in range(5)]


async def test_lists_that_nobody_finishes_are_forgotten(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("f", b"x")
    async with room(store, tmp_path) as (_, verbs):
        lists = [(await verbs["list"]({"items": [[1, "f"], [2, "g"]]})) for _ in range(9)]
        assert lists[0]["bad"] == [(2, "g: no such file or directory")]
        with pytest.raises(LazyfsError, match="no such list"):
            await verbs["preload"]({"list": lists[0]["list"]})
        task = await verbs["preload"]({"list": lists[8]["list"], "about": "f"})
        with trio.fail_after(10):
            while (await verbs["task"]({"id": task["id"]}))["state"] == "running":
                await trio.sleep(0.005)
        assert (await verbs["task"]({"id": task["id"]}))["progress"]["files"] == 1


async def test_sync_of_what_is_nowhere(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("d/f", b"x")
    async with room(store, tmp_path) as (m, verbs):

        async def synced(path: str) -> tuple[str, str | None]:
            task = await verbs["sync"]({"path": path})
            with trio.fail_after(10):
                while (told := await verbs["task"]({"id": task["id"]}))["state"] == "running":
                    await trio.sleep(0.005)
            return told["state"], told["error"]

        assert await synced("none") == ("failed", "none: no such file or directory")
        store.put_now("none", b"x")
        assert await synced("none") == ("done", None)
        assert await m.read("none") == b"x"
        await store.delete("d/f")
        store.put_now("d/e/g", b"new")
        assert await synced("d") == ("done", None)
        assert await m.read("d/e/g") == b"new"
        with pytest.raises(NoEntryError):
            await m.lookup("d/f")
        await store.delete("d/e/g")
        assert await synced("d") == ("done", None)
        with pytest.raises(NoEntryError):
            await m.lookup("d")
