"""Following what the server tells of changes: whatever comes, in whatever order, the namespace ends at the truth."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio

from lazyfs.core.backoff import Backoff
from lazyfs.core.errors import AccessDeniedError, NoEntryError, StoreError, UnreachableError
from lazyfs.core.types import ROOT_INO
from lazyfs.store.events import Batch
from lazyfs.store.memory import MemoryStore
from lazyfs.vfs.watching import CHECKS, Watcher
from tests.vfs.building import Mount, mounted


class FakeStream:
    """Batches that a test sends; `applied` are those that were acknowledged."""

    def __init__(self) -> None:
        self.send, self._receive = trio.open_memory_channel[Batch | StoreError](100)
        self.acknowledged: list[Batch] = []

    def tell(self, *keys: str) -> None:
        self.send.send_nowait(Batch(keys))

    def lose(self, error: StoreError | None = None) -> None:
        self.send.send_nowait(error or UnreachableError("gone"))

    async def next(self) -> Batch:
        told = await self._receive.receive()
        if isinstance(told, StoreError):
            raise told
        return told

    async def applied(self, batch: Batch) -> None:
        self.acknowledged.append(batch)

    async def done(self, count: int) -> None:
        while len(self.acknowledged) < count:
            await trio.lowlevel.checkpoint()


class FakeSource:
    """Gives a fresh stream at each connection, or the next of `errors`."""

    def __init__(self, errors: Sequence[StoreError] = ()) -> None:
        self.errors = list(errors)
        self.streams: list[FakeStream] = []

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[FakeStream]:
        await trio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        self.streams.append(FakeStream())
        yield self.streams[-1]

    @property
    def stream(self) -> FakeStream:
        return self.streams[-1]


class Kernel:
    def __init__(self) -> None:
        self.forgotten: list[tuple[int, str]] = []

    def forget_entry(self, parent: int, name: str) -> None:
        self.forgotten.append((parent, name))


def watcher(mount: Mount, source: FakeSource) -> Watcher:
    backoff = Backoff(base_s=0.001, cap_s=0.01, deadline_s=0.1)
    return Watcher(source=source, namespace=mount.namespace, backoff=backoff, stats=mount.stats, random=lambda: 0.5)


@contextlib.asynccontextmanager
async def watched(store: MemoryStore, path: Path, source: FakeSource) -> AsyncIterator[tuple[Mount, Kernel]]:
    """A mount that never asks by itself, imported, followed."""
    async with mounted(store, path / "index.db", ttl_s=float("inf")) as mount:
        mount.namespace.kernel = kernel = Kernel()
        async with trio.open_nursery() as nursery:
            await nursery.start(watcher(mount, source).run)
            await mount.namespace.refresh()
            yield mount, kernel
            nursery.cancel_scope.cancel()


async def exists(mount: Mount, path: str) -> bool:
    try:
        await mount.lookup(path)
    except NoEntryError:
        return False
    return True


async def tree(mount: Mount, path: str = "") -> dict[str, int]:
    """Every file below `path` with its size, as readdir and lookup tell."""
    found = {}
    for name in await mount.names(path):
        below = f"{path}/{name}" if path else name
        attributes = await mount.lookup(below)
        if attributes.kind.name == "DIRECTORY":
            found |= await tree(mount, below)
        else:
            found[below] = attributes.size
    return found


async def test_a_change_that_was_told_is_seen_though_no_lease_has_ended(tmp_path: Path) -> None:
    store, source = MemoryStore(), FakeSource()
    store.put_now("a/old", b"1")
    store.put_now("a/gone", b"1")
    async with watched(store, tmp_path, source) as (mount, kernel):
        old = (await mount.lookup("a/old")).ino
        assert not await exists(mount, "a/new")
        assert not await exists(mount, "fresh")
        store.put_now("a/old", b"22")
        store.put_now("a/new", b"333")
        store.put_now("fresh/deep/er", b"4444")
        store.delete_now("a/gone")
        assert await tree(mount) == {"a/old": 1, "a/gone": 1}
        source.stream.tell("a/old", "a/new", "fresh/deep/er", "a/gone")
        await source.stream.done(1)
        assert await tree(mount) == {"a/old": 2, "a/new": 3, "fresh/deep/er": 4}
        assert (await mount.lookup("a/old")).ino != old
        a = (await mount.lookup("a")).ino
        assert {(a, "old"), (a, "new"), (a, "gone"), (ROOT_INO, "fresh")} <= set(kernel.forgotten)


async def test_directories_that_a_deletion_empties_go_with_it(tmp_path: Path) -> None:
    store, source = MemoryStore(), FakeSource()
    for key in ("a/b/c/file", "kept/", "kept/file", "other/x", "other/y"):
        store.put_now(key, b"1")
    async with watched(store, tmp_path, source) as (mount, _):
        assert await mount.names() == ["a", "kept", "other"]
        for key in ("a/b/c/file", "kept/file", "other/x"):
            store.delete_now(key)
        source.stream.tell("a/b/c/file", "kept/file", "other/x")
        await source.stream.done(1)
        assert await mount.names() == ["kept", "other"]
        assert await mount.names("kept") == []
        store.delete_now("kept/")
        source.stream.tell("kept/")
        await source.stream.done(2)
        assert await mount.names() == ["other"]


async def test_a_directory_that_we_emptied_stays_for_whoever_goes_on_in_it(tmp_path: Path) -> None:
    store, source = MemoryStore(), FakeSource()
    store.put_now("a/file", b"1")
    async with watched(store, tmp_path, source) as (mount, _):
        parent, name = await mount.parent_of("a/file")
        await mount.fs.unlink(parent, name)
        source.stream.tell("a/file")
        await source.stream.done(1)
        await mount.write("a/next", b"2")
        assert store.keys() == ["a/next"]


async def test_file_and_directory_change_places(tmp_path: Path) -> None:
    store, source = MemoryStore(), FakeSource()
    store.put_now("x", b"1")
    store.put_now("y/z", b"1")
    async with watched(store, tmp_path, source) as (mount, _):
        assert await tree(mount) == {"x": 1, "y/z": 1}
        for key in ("x", "y/z"):
            store.delete_now(key)
        store.put_now("x/z", b"22")
        store.put_now("y", b"22")
        source.stream.tell("x", "x/z", "y", "y/z")
        await source.stream.done(1)
        assert await tree(mount) == {"x/z": 2, "y": 2}


@pytest.mark.parametrize("seed", range(10))
async def test_duplicates_and_disorder_do_no_harm(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    store, source = MemoryStore(), FakeSource()
    keys = [f"{a}/{b}/{c}" for a in "ab" for b in "cd" for c in "ef"] + ["a", "a/c", "g", "a/"]
    for key in keys[::2]:
        store.put_now(key, b"0")
    async with watched(store, tmp_path, source) as (mount, _):
        await tree(mount)
        told: list[str] = []
        for at in range(40):
            key = rng.choice(keys)
            if rng.random() < 0.5:
                store.put_now(key, bytes(at + 1))
            else:
                store.delete_now(key)
            told += [key] * rng.randint(1, 2)
        rng.shuffle(told)
        batches = [told[at : at + 7] for at in range(0, len(told), 7)]
        for batch in batches:
            source.stream.tell(*dict.fromkeys(batch))
        await source.stream.done(len(batches))
        async with mounted(store, tmp_path / "fresh.db") as truth:
            assert await tree(mount) == await tree(truth)


async def test_what_changes_while_it_is_asked_about_is_asked_again(tmp_path: Path) -> None:
    store, source = MemoryStore(), FakeSource()
    store.put_now("file", b"1")
    async with watched(store, tmp_path, source) as (mount, _):
        await mount.lookup("file")

        def change_behind(when: str, verb: str, key: str) -> None:
            if (when, verb, key) == ("after", "head", "file"):
                store.hook = None
                store.put_now("file", b"333")
                source.stream.tell("file")

        store.put_now("file", b"22")
        store.hook = change_behind
        mount.namespace.expire(ROOT_INO, "file")  # somebody else's check is on its way, and asked too early
        await source.stream.done(1)
        assert (await mount.lookup("file")).size == 3


async def test_a_listing_on_its_way_does_not_undo_what_was_learnt(tmp_path: Path) -> None:
    store, source = MemoryStore(), FakeSource()
    store.put_now("a/file", b"1")
    async with watched(store, tmp_path, source) as (mount, _):
        await mount.lookup("a/file")
        arrived, go_on = trio.Event(), trio.Event()
        list_page = store.list_page

        async def slow(*args: object, **kwargs: object) -> object:
            page = await list_page(*args, **kwargs)  # type: ignore[arg-type]
            if kwargs.get("limit") != 1 and not arrived.is_set():
                arrived.set()
                await go_on.wait()
            return page

        store.list_page = slow  # type: ignore[method-assign, assignment]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.namespace.refresh)
            await arrived.wait()
            store.put_now("a/file", b"22")
            store.put_now("a/new", b"22")
            source.stream.tell("a/file", "a/new")
            await source.stream.done(1)
            go_on.set()
        assert await tree(mount) == {"a/file": 2, "a/new": 2}


async def test_a_burst_is_asked_about_a_few_at_a_time(tmp_path: Path) -> None:
    store, source = MemoryStore(), FakeSource()
    now: Counter[str] = Counter()
    peak = 0

    def count(when: str, verb: str, key: str) -> None:
        nonlocal peak
        if verb == "head" and key != "d":  # which is not there, so that there is no "after" either
            now[verb] += 1 if when == "before" else -1
            peak = max(peak, now[verb])

    async with watched(store, tmp_path, source) as (mount, _):
        keys = [f"d/{number}" for number in range(300)]
        for key in keys:
            store.put_now(key, b"1")
        store.requests.clear()
        store.hook = count
        source.stream.tell(*keys)
        await source.stream.done(1)
        assert len(await mount.names("d")) == 300
        assert mount.stats.snapshot()["events.applied"] == 300
        assert 0 < peak <= CHECKS


async def test_keys_that_are_no_paths_or_not_ours_ask_nothing(tmp_path: Path) -> None:
    store, source = MemoryStore(), FakeSource()
    async with watched(store, tmp_path, source) as (_, _kernel):
        store.requests.clear()
        source.stream.tell("a//b", "/x", "a/../b", "", "n" * 256)
        await source.stream.done(1)
        assert store.requests == []


async def test_a_lost_stream_is_followed_by_a_refresh(tmp_path: Path) -> None:
    store, source = MemoryStore(), FakeSource()
    async with watched(store, tmp_path, source) as (mount, _):
        store.put_now("while/nobody/listened", b"1")
        source.errors += [UnreachableError("still"), AccessDeniedError("even that")]
        source.stream.lose()
        while mount.stats.snapshot().get("events.refreshes", 0) < 1 or not await exists(mount, "while"):
            await trio.sleep(0.001)
        assert await tree(mount) == {"while/nobody/listened": 1}
        assert mount.stats.snapshot()["events.lost"] == 3
        store.put_now("later", b"1")
        source.stream.tell("later")
        await source.stream.done(1)
        assert await exists(mount, "later")


async def test_a_change_that_could_not_be_asked_about_is_found_by_a_refresh(tmp_path: Path) -> None:
    store, source = MemoryStore(), FakeSource()
    async with watched(store, tmp_path, source) as (mount, _):

        def fail(when: str, verb: str, key: str) -> None:
            if verb == "head":
                store.hook = None
                raise UnreachableError("cut")

        store.hook = fail
        store.put_now("file", b"1")
        source.stream.tell("file")
        while not await exists(mount, "file"):
            await trio.sleep(0.001)
        assert len(source.streams) == 2
        assert source.streams[0].acknowledged == []


@pytest.mark.parametrize("error", [AccessDeniedError("no"), UnreachableError("down")])
async def test_a_first_stream_that_will_not_come_fails_the_mount(tmp_path: Path, error: StoreError) -> None:
    source = FakeSource([error] * 1000)
    async with mounted(MemoryStore(), tmp_path / "index.db") as mount, trio.open_nursery() as nursery:
        with pytest.raises(type(error)):
            await nursery.start(watcher(mount, source).run)
