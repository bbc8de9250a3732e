"""What is told of files agrees with what reads really brought, and costs nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.core.errors import AccessDeniedError, NoAttributeError
from lazyfs.core.residency import State, union
from lazyfs.core.types import Range
from lazyfs.vfs.facts import Facts, FactsOf
from tests.vfs.building import Knobs, Mount, mounted
from tests.vfs.stores import ScriptedStore

warns = pytest.mark.expect_warnings
BLOCK = Knobs().block


@asynccontextmanager
async def room(store: ScriptedStore, path: Path, **options: Any) -> AsyncIterator[tuple[Mount, FactsOf]]:
    knobs = options.pop("knobs", Knobs(memory=65536))
    async with mounted(store, path / "index", disk=path / "blocks", ttl_s=float("inf"), knobs=knobs, **options) as m:
        await m.namespace.refresh()
        facts = FactsOf(
            namespace=m.namespace,
            cache=m.cache,
            fetcher=m.fetcher,
            handles=m.fs.handles,
            bound=m.fs.versions.bound,
            backlog=m.backlog,
        )
        m.fs.xattrs.facts = facts
        yield m, facts


async def of(m: Mount, facts: FactsOf, path: str) -> Facts:
    node = m.namespace.node((await m.lookup(path)).ino)
    (found,) = await facts.files([(node, m.namespace.key(node))])
    return found


def bytes_of(ranges: Any) -> set[int]:
    return {byte for span in ranges for byte in range(*span)}


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 400),
    reads=st.lists(st.tuples(st.integers(0, 420), st.integers(1, 90)), max_size=8),
    forgets_memory=st.booleans(),
)
def test_ranges_agree_with_what_reads_brought(size: int, reads: list[tuple[int, int]], forgets_memory: bool) -> None:
    """Every byte that was fetched, and no other, is told to be here, after each read."""

    async def run(path: Path) -> None:
        store = ScriptedStore()
        store.put_now("f", bytes(index % 251 for index in range(size)))
        async with room(store, path) as (m, facts):
            for start, length in reads:
                ino, fh = await m.open("f")
                await m.fs.read(ino, fh, Range(start, start + length))
                await m.fs.release(ino, fh)
                await m.settle()
                told = await of(m, facts, "f")
                fetched = bytes_of(store.spans())
                assert bytes_of(union(*told.tiers.values())) == fetched
                assert bytes_of(told.tiers.get("disk", ())) == fetched
                assert bytes_of(told.tiers.get("memory", ())) == fetched
                assert told.resident == len(fetched)
            if forgets_memory:
                node = m.namespace.node((await m.lookup("f")).ino)
                for oid, count in facts.versions(node, "f"):
                    for block in range(count):
                        m.cache.memory.forget(oid, block)
            told = await of(m, facts, "f")
            whole = len(bytes_of(store.spans()))
            assert ("memory" in told.tiers) == (whole > 0 and not forgets_memory)
            assert told.state == (State.RELEASED if not whole else State.ARCHIVED if whole == size else State.PARTIAL)

    with tempfile.TemporaryDirectory() as folder:
        trio.run(run, Path(folder))


async def test_asking_uses_nothing(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("a", b"x" * BLOCK)
    store.put_now("b", b"y" * BLOCK)
    async with room(store, tmp_path) as (m, facts):
        await m.read("a")
        await m.read("b")
        await m.settle()
        before = list(m.cache.memory._blocks._items)
        requests = len(store.requests)
        assert (await of(m, facts, "a")).state is State.ARCHIVED
        assert list(m.cache.memory._blocks._items) == before
        assert len(store.requests) == requests


async def test_a_file_that_is_written(tmp_path: Path) -> None:
    store = ScriptedStore()
    async with room(store, tmp_path) as (m, facts):
        ino, fh = await m.create("f")
        await m.fs.write(ino, fh, 0, b"abc")
        told = await of(m, facts, "f")
        assert (told.state, told.size, told.resident) == (State.DIRTY, 3, 0)
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        await m.settle()
        assert (await of(m, facts, "f")).state is State.ARCHIVED


async def test_a_renamed_file_is_still_here(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("f", b"x" * 3 * BLOCK)
    async with room(store, tmp_path) as (m, facts):
        await m.read("f")
        await m.settle()
        await m.fs.rename(1, "f", 1, "g", replace=True)
        told = await of(m, facts, "g")
        assert (told.state, told.key) == (State.ARCHIVED, "g")


@warns
async def test_what_waits_for_its_upload(tmp_path: Path) -> None:
    store = ScriptedStore()
    (tmp_path / "spool").mkdir()
    held = store.hold("put")
    store.fail("put", 2, AccessDeniedError("no"))
    options = {"spool": tmp_path / "spool", "write_back": tmp_path / "waiting"}
    async with room(store, tmp_path, **options) as (m, facts):
        await m.write("f", b"abc")
        with trio.fail_after(10):
            while not store.now["put"]:
                assert (await of(m, facts, "f")).state in (State.DIRTY, State.UPLOADING)
                await trio.sleep(0.001)
        told = await of(m, facts, "f")
        assert (told.state, told.tiers) == (State.UPLOADING, {"spool": [Range(0, 3)]})
        held.set()
        await m.settle()
        assert (await of(m, facts, "f")).state is State.ARCHIVED
        held = store.hold("put")
        await m.write("g", b"abc")
        with trio.fail_after(10):
            while not m.backlog or not m.backlog.failures:
                held.set()
                held = store.hold("put")
                await trio.sleep(0.001)
        failed = await of(m, facts, "g")
        assert (failed.state, failed.error) == (State.FAILED, "no")
        assert (await facts.attribute(failed.node.ino, "user.lazyfs.error")) == b"no"
        held.set()
        await m.settle()


async def test_attributes(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("d/f", b"x" * 2 * BLOCK)
    async with room(store, tmp_path, xattrs=True) as (m, _):
        ino = (await m.lookup("d/f")).ino

        async def get(name: str) -> bytes:
            return await m.fs.xattrs.get(ino, f"user.lazyfs.{name}".encode())

        assert await get("state") == b"released"
        assert await get("key") == b"d/f"
        assert await get("etag") == m.namespace.node(ino).etag.encode()
        for name in ("ranges", "error", "nonsense"):
            with pytest.raises(NoAttributeError):
                await get(name)
        await m.read("d/f")
        await m.settle()
        assert await get("state") == b"archived"
        assert await get("ranges") == b"memory 0-16; disk 0-16"
        assert await m.fs.xattrs.names(ino) == []
        with pytest.raises(NoAttributeError):
            await m.fs.xattrs.get((await m.lookup("d")).ino, b"user.lazyfs.state")


@warns
async def test_a_cache_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    store = ScriptedStore()
    store.put_now("f", b"x" * BLOCK)
    async with room(store, tmp_path, knobs=Knobs(memory=65536)) as (m, facts):
        await m.read("f")
        await m.settle()
        shutil.rmtree(tmp_path / "blocks")
        told = await of(m, facts, "f")
        assert list(told.tiers) == ["memory"]
        assert not os.path.exists(tmp_path / "blocks")
