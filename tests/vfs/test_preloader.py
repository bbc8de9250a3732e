"""Preload: everything comes to the disk, readers first, and what cannot come does not stop the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from lazyfs.cache import disk
from lazyfs.cache.disk import DiskTier
from lazyfs.core.errors import AccessDeniedError
from lazyfs.core.ranges import RangeSpec
from lazyfs.core.types import ObjectId, Range
from lazyfs.vfs import preloader
from lazyfs.vfs.fetcher import BESIDE_BLOCKS
from lazyfs.vfs.preloader import Preloader
from tests.vfs.building import Knobs, Mount, mounted
from tests.vfs.stores import ScriptedStore

warns = pytest.mark.expect_warnings


def content(number: int, size: int = 100) -> bytes:
    return bytes((number * 7 + index) % 251 for index in range(size))


def filled(files: int = 20, size: int = 100) -> ScriptedStore:
    store = ScriptedStore()
    for number in range(files):
        store.put_now(f"d{number % 3}/e/f{number:03}", content(number, size))
    store.put_now("d1/empty", b"")
    return store


@asynccontextmanager
async def room(store: ScriptedStore, tmp_path: Path, **knobs: Any) -> AsyncIterator[tuple[Mount, Preloader]]:
    """A mount that has listed its bucket, and what preloads it."""
    sizes = Knobs(**{"memory": 16384, **knobs})
    async with mounted(store, tmp_path / "index", disk=tmp_path / "blocks", ttl_s=float("inf"), knobs=sizes) as m:
        await m.namespace.refresh()
        yield m, Preloader(namespace=m.namespace, fetcher=m.fetcher, disk=disk_of(m))


def disk_of(m: Mount) -> DiskTier:
    assert m.cache.disk is not None
    return m.cache.disk


def oid_of(store: ScriptedStore, key: str) -> ObjectId:
    return ObjectId(key, store._objects[key].etag)


async def until(true: Callable[[], bool]) -> None:
    """Return when it is so: threads of the SSD tier take their time."""
    with trio.fail_after(20):
        while not true():
            await trio.sleep(0.005)


async def run(m: Mount, preload: Preloader) -> None:
    with trio.fail_after(20):
        await preload.run()
    await m.settle()


async def test_everything_is_on_the_disk_and_nothing_is_fetched_twice(tmp_path: Path) -> None:
    store = filled()
    async with room(store, tmp_path) as (m, preload):
        await run(m, preload)
        assert (preload.progress.state, preload.progress.files, preload.progress.bytes) == ("done", 20, 2000)
        assert store.fetched == 2000
        assert m.cache.memory.used_bytes == 0, "memory is left to those who read"
        for number in range(20):
            assert await m.read(f"d{number % 3}/e/f{number:03}") == content(number)
        assert store.fetched == 2000
        again = Preloader(namespace=m.namespace, fetcher=m.fetcher, disk=disk_of(m))
        await run(m, again)
        assert (again.progress.state, again.progress.files, store.fetched) == ("done", 20, 2000)


async def test_what_a_reader_brought_is_not_fetched_again(tmp_path: Path) -> None:
    store = filled()
    async with room(store, tmp_path) as (m, preload):
        assert await m.read("d0/e/f003") == content(3)
        await m.settle()
        before = store.fetched
        await run(m, preload)
        assert preload.progress.files == 20
        assert store.fetched == 2000
        assert before >= 100


async def test_a_reader_goes_before_and_shares_what_is_on_its_way(tmp_path: Path) -> None:
    store = filled(files=60)
    async with room(store, tmp_path, slots=4) as (m, preload):
        held = store.hold("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(preload.run)
            await until(lambda: store.now["get"] >= 2)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert store.now["get"] == 2, "half of the slots"
            read: list[bytes] = []

            async def reader() -> None:
                read.append(await m.read("d2/e/f059"))

            nursery.start_soon(reader)
            await until(lambda: store.now["get"] == 4)  # the other slots are the reader's
            held.set()
        await m.settle()
        assert read == [content(59)]
        assert store.fetched == 6000


@warns
async def test_one_object_that_fails_does_not_stop_the_rest(tmp_path: Path) -> None:
    store = filled()
    store.fail("get", 3, AccessDeniedError("no"))
    async with room(store, tmp_path) as (m, preload):
        await run(m, preload)
        assert (preload.progress.state, preload.progress.files) == ("done", 20), "the next pass brought it"
        assert store.fetched == 2000


@warns
async def test_when_nothing_can_be_fetched_it_ends_and_says_why(tmp_path: Path) -> None:
    store = filled(files=300)
    for number in range(1, 400):
        store.fail("get", number, AccessDeniedError("the key may not be read"))
    async with room(store, tmp_path) as (m, preload):
        await run(m, preload)
        assert preload.progress.state == "failed"
        assert "may not be read" in preload.progress.error
        assert store.calls["get"] < 2 * preloader.JOBS


async def test_what_was_replaced_meanwhile_is_not_an_error(tmp_path: Path) -> None:
    store = filled()
    async with room(store, tmp_path) as (m, preload):
        store.put_now("d0/e/f000", b"another")
        await run(m, preload)
        assert (preload.progress.state, preload.progress.failures) == ("done", 0)
        assert (preload.progress.files, preload.progress.bytes) == (20, 1907), "the next pass brought the new one"


async def test_it_ends_before_it_evicts_what_it_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled()
    async with room(store, tmp_path) as (m, preload):
        monkeypatch.setattr(disk_of(m), "_limit_bytes", 950)
        await run(m, preload)
        assert (preload.progress.state, preload.progress.bytes) == ("full", 900)
        assert store.fetched == 900


async def test_a_small_memory_makes_it_wait_and_not_fail(tmp_path: Path) -> None:
    store = filled(files=40, size=200)
    async with room(store, tmp_path, memory=128) as (m, preload):
        await run(m, preload)
        assert (preload.progress.state, preload.progress.failures) == ("done", 0)
        assert store.fetched >= 8000
        for number in range(40):
            assert await m.read(f"d{number % 3}/e/f{number:03}") == content(number, 200)


async def test_what_is_named_comes_in_its_order_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preloader, "JOBS", 1)  # of those that are under way together, any may be first
    store = filled()
    async with room(store, tmp_path, slots=2) as (m, _):
        inos = [(await m.lookup(path)).ino for path in ("d2/e/f005", "d0/e/f000", "d1", "d0/e/f003")]
        preload = Preloader(namespace=m.namespace, fetcher=m.fetcher, disk=disk_of(m), inos=inos)
        await preload.count()
        assert (preload.progress.total_files, preload.progress.total_bytes) == (10, 1000)
        await run(m, preload)
        order = list(dict.fromkeys(request.key for request in store.requests if request.span is not None))
        named = ["d2/e/f005", "d0/e/f000", *(f"d1/e/f{number:03}" for number in range(1, 20, 3)), "d0/e/f003"]
        assert order == named
        assert (preload.progress.state, preload.progress.files) == ("done", 10)


async def test_what_was_never_listed_is_listed_for_who_names_it(tmp_path: Path) -> None:
    store = filled()
    sizes = Knobs(memory=16384)
    async with mounted(store, tmp_path / "index", disk=tmp_path / "blocks", ttl_s=float("inf"), knobs=sizes) as m:
        inos = [(await m.lookup("d1")).ino]
        preload = Preloader(namespace=m.namespace, fetcher=m.fetcher, disk=disk_of(m), inos=inos, asks=True)
        await run(m, preload)
        assert preload.progress.files == 7


@warns
async def test_who_named_it_hears_of_what_could_not_come(tmp_path: Path) -> None:
    store = filled()
    for number in range(1, 12):
        store.fail("get", number, AccessDeniedError("no"))
    heard: list[tuple[str, str]] = []
    async with room(store, tmp_path) as (m, _):
        inos = [(await m.lookup(path)).ino for path in ("d0/e/f000", "d0/e/f003", "d1/e/f001")]
        node = m.index.entry((await m.lookup("d0/e")).ino, "f003")
        assert node is not None
        await m.index.remove_entry(node.parent, "f003")
        preload = Preloader(
            namespace=m.namespace,
            fetcher=m.fetcher,
            disk=disk_of(m),
            inos=inos,
            fail=lambda key, reason: heard.append((key, reason)),
        )
        await run(m, preload)
        assert preload.progress.state == "failed"
        assert sorted(heard) == [
            (f"(inode {node.ino})", "was replaced or deleted meanwhile"),
            ("d0/e/f000", "no"),
            ("d1/e/f001", "no"),
        ]


async def test_only_the_ranges_that_are_named_come(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("long", content(1, 1000))
    store.put_now("short", content(2, 10))
    async with room(store, tmp_path) as (m, _):
        size = m.fetcher.block_size
        preload = Preloader(
            namespace=m.namespace,
            fetcher=m.fetcher,
            disk=disk_of(m),
            ranges=[RangeSpec(0, 1), RangeSpec(3 * size, 4 * size), RangeSpec(None, 1)],
        )
        await preload.count()
        await run(m, preload)
        last = (1000 - 1) // size
        held = (await disk_of(m).survey([(oid_of(store, "long"), last + 1)]))[0]
        assert held.runs == [range(1), range(3, 4), range(last, last + 1)]
        progress = preload.progress
        assert (progress.state, progress.files, progress.bytes) == ("done", 2, 2 * size + 1000 - last * size + 10)
        assert (progress.total_files, progress.total_bytes) == (progress.files, progress.bytes)
        assert store.fetched == progress.bytes


async def test_no_more_files_at_a_time_than_jobs(tmp_path: Path) -> None:
    store = filled(40)
    async with room(store, tmp_path) as (m, _):
        preload = Preloader(namespace=m.namespace, fetcher=m.fetcher, disk=disk_of(m), jobs=3)
        await run(m, preload)
        assert preload.progress.files == 40
        assert store.peak["get"] <= 3


async def test_what_is_pinned_is_there_and_pinned_whole(tmp_path: Path) -> None:
    store = filled(20)
    async with room(store, tmp_path) as (m, _):
        preload = Preloader(namespace=m.namespace, fetcher=m.fetcher, disk=disk_of(m), pins=True)
        await run(m, preload)
        assert (preload.progress.state, preload.progress.files) == ("done", 20)
        blocks = len(m.fetcher.blocks(100))
        wanted = [(oid_of(store, f"d{number % 3}/e/f{number:03}"), blocks) for number in range(20)]
        assert all(held.pinned == [range(blocks)] for held in await disk_of(m).survey(wanted))


async def test_more_than_may_be_pinned_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PIN_FRACTION", 1e-6)
    async with room(filled(20), tmp_path) as (m, _):
        preload = Preloader(namespace=m.namespace, fetcher=m.fetcher, disk=disk_of(m), pins=True)
        await run(m, preload)
        assert preload.progress.state == "full"


async def test_beside_readers_it_asks_for_less_at_a_time(tmp_path: Path) -> None:
    store = ScriptedStore()
    for name in ("alone", "beside", "read"):
        store.put_now(name, content(1, 4000))
    async with room(store, tmp_path, extent=16 * 16, block=16) as (m, _):

        async def widths(name: str) -> list[int]:
            before = len(store.spans())
            inos = [(await m.lookup(name)).ino]
            await run(m, Preloader(namespace=m.namespace, fetcher=m.fetcher, disk=disk_of(m), inos=inos))
            return [stop - start for start, stop in store.spans()[before:]]

        assert max(await widths("alone")) == 16 * 16
        ino, fh = await m.open("read")
        await m.fs.read(ino, fh, Range(0, 1))
        assert (await widths("beside"))[0] == BESIDE_BLOCKS * 16
        await m.fs.release(ino, fh)
