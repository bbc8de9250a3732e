"""The SSD tier on a real directory: whatever happens to it is a miss and one warning, never a wrong byte."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import diskcache
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache import blockcache, disk
from lazyfs.cache.blockfile import RUN_BLOCKS, label, read_label
from lazyfs.cache.disk import RETRY_S, DiskTier
from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.tiered import TieredCache
from lazyfs.core.ranges import plan_extents
from lazyfs.core.stats import Stats
from lazyfs.core.types import Buffer, ObjectId

OID = ObjectId("data/ä\n😀", "e1")
KiB, MiB, GiB = 1024, 1024**2, 1024**3
warns = pytest.mark.expect_warnings


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Room:
    """A cache directory and tiers on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stats = Stats()
        self.clock = Clock()

    def tier(self, *, limit: int = 64 * MiB, scope: str = "s") -> DiskTier:
        return DiskTier(directory=self.path, limit_bytes=limit, scope=scope, stats=self.stats, clock=self.clock)

    def values(self) -> list[Path]:
        return sorted(self.path.glob("??/*.val"))

    def execute(self, sql: str, *arguments: Any) -> list[Any]:
        connection = sqlite3.connect(self.path / "cache.db")
        try:
            with connection:
                return connection.execute(sql, arguments).fetchall()
        finally:
            connection.close()


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "cache" / "blocks")


async def put(tier: DiskTier, blocks: dict[int, Buffer], oid: ObjectId = OID) -> None:
    """Write and wait until it is written."""
    tier.put_soon(oid, blocks, lambda: None)
    await tier.written()


async def got(tier: DiskTier, oid: ObjectId, blocks: Iterable[int]) -> dict[int, Buffer]:
    """What the tier has of `blocks`."""
    found: dict[int, Buffer] = {}
    for extent in plan_extents(blocks, 1000):
        loaded = await tier.get_many(oid, extent)
        assert loaded.whole == b"".join(loaded.blocks.values()), "the views lie one after the other"
        assert list(loaded.blocks) == sorted(loaded.blocks)
        found |= loaded.blocks
    return found


def block(seed: int, size: int = 10_000) -> bytes:
    """Some bytes, others for each seed."""
    return (bytes((seed * 31 + index) % 251 for index in range(251)) * (size // 251 + 1))[:size]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- what it is for -----------------------------------------------------------------------------------------------


async def test_what_was_put_comes_back(room: Room) -> None:
    async with room.tier() as tier:
        blocks = {0: block(0), 7: memoryview(block(7)), 8: b"", 9: b"short"}
        await put(tier, blocks)
        found = await got(tier, OID, [0, 1, 7, 8, 9])
        assert {number: bytes(data) for number, data in found.items()} == {n: bytes(d) for n, d in blocks.items()}
        assert room.stats.get("cache.disk.hit_blocks") == 4
        assert room.stats.get("cache.disk.hit_bytes") == 20_005
        assert tier.limit_bytes == 64 * MiB
        assert await tier.used_bytes() >= 20_005


async def test_it_survives_being_closed(room: Room) -> None:
    async with room.tier() as tier:
        tier.put_soon(OID, {1: block(1)}, lambda: None)  # leaving waits for what is pending
    async with room.tier() as tier:
        assert await got(tier, OID, [1]) == {1: block(1)}


async def test_a_block_is_of_one_version_of_one_object_in_one_scope(room: Room) -> None:
    async with room.tier() as tier, room.tier(scope="other") as other:
        await put(tier, {1: block(1)})
        assert await got(tier, ObjectId(OID.key, "e2"), [1]) == {}
        assert await got(tier, ObjectId("other", OID.etag), [1]) == {}
        assert await got(other, OID, [1]) == {}
        assert await got(tier, OID, [1]) == {1: block(1)}


async def test_a_later_value_replaces_the_earlier(room: Room) -> None:
    async with room.tier() as tier:
        await put(tier, {1: block(1)})
        await put(tier, {1: block(2)})
        assert await got(tier, OID, [1]) == {1: block(2)}
        assert len(room.values()) == 1


async def test_neighbouring_blocks_are_one_file(room: Room) -> None:
    async with room.tier() as tier:
        await put(tier, {number: block(number) for number in range(2, 10)})
        assert len(room.values()) == 4, "2, 3, 4-7 and 8-9: whoever looks for a block looks in two places at most"
        for first in range(11):
            for stop in range(first + 1, 12):
                wanted = range(first, stop)
                assert await got(tier, OID, wanted) == {n: block(n) for n in wanted if 2 <= n < 10}


@warns
async def test_what_is_missing_is_known_without_reading_it(room: Room) -> None:
    async with room.tier() as tier:
        await put(tier, {n: block(n) for n in (0, 1, 5, 8, 9, 10)})
        other = ObjectId("other", "e")
        assert await tier.missing([(OID, range(12)), (other, range(2))]) == [[2, 3, 4, 6, 7, 11], [0, 1]]
        assert room.stats.get("cache.disk.hit_blocks") == 0
        room.path.rename(room.path.with_name("away"))
        assert await tier.missing([(OID, range(12))]) == [list(range(12))]
        assert not tier.is_on
        room.clock.now_s += RETRY_S
        assert tier.is_on


@pytest.mark.parametrize("order", [[(4, 8), (4, 5)], [(4, 5), (4, 8)], [(5, 7), (4, 6)], [(6, 8), (0, 7), (7, 9)]])
async def test_runs_that_overlap_are_right_whichever_came_first(room: Room, order: list[tuple[int, int]]) -> None:
    async with room.tier() as tier:
        for number, (start, stop) in enumerate(order):
            await put(tier, {n: block(n, 9000) for n in range(start, stop)})
            found = await got(tier, OID, range(12))
            assert found == {n: block(n, 9000) for n in found}
            assert found.keys() >= set(range(start, stop)), f"what was put last is there ({number})"


async def test_two_tiers_share_one_directory(room: Room) -> None:
    async with room.tier() as one, room.tier() as two:
        await put(one, {1: block(1)})
        await put(two, {2: block(2)})
        for tier in (one, two):
            assert await got(tier, OID, [1, 2]) == {1: block(1), 2: block(2)}


async def test_the_limit_is_kept_and_the_oldest_go(room: Room) -> None:
    limit = 4 * MiB
    async with room.tier(limit=limit) as tier:
        for number in range(48):
            await put(tier, {number: block(number, 256 * KiB)})
            assert await tier.used_bytes() <= limit + 32 * KiB
        found = await got(tier, OID, range(48))
        assert 47 in found
        assert 0 not in found
        assert sum(path.stat().st_size for path in room.values()) <= limit + 32 * KiB


async def test_a_block_larger_than_the_limit_is_not_kept(room: Room) -> None:
    async with room.tier(limit=100_000) as tier:
        await put(tier, {1: block(1, 200_000)})
        assert room.values() == []
        assert room.stats.get("cache.disk.no_space") == 1


async def test_what_waits_is_reserved_and_more_than_half_of_memory_is_not_written(room: Room) -> None:
    async with room.tier() as tier:
        memory = MemoryTier(budget_bytes=1000)
        cache = TieredCache(memory=memory, disk=tier)
        held = threading.Event()
        tier._writer.submit(held.wait)
        cache.admit(OID, {1: bytes(250)}, 250, to_disk=True)
        cache.admit(OID, {2: bytes(250)}, 250, to_disk=True)
        assert (memory.reserved_bytes, room.stats.get("cache.disk.dropped_blocks")) == (500, 0)
        cache.admit(OID, {3: b"one byte more"}, 13, to_disk=True)
        assert (memory.reserved_bytes, room.stats.get("cache.disk.dropped_blocks")) == (500, 1)
        assert cache.resident(OID, 3) == b"one byte more"
        held.set()
        await tier.written()
        assert (memory.reserved_bytes, tier.pending_bytes) == (0, 0)
        cache.admit(OID, {4: b"room again"}, 10, to_disk=True)
        await tier.written()
        assert set(await got(tier, OID, [1, 2, 3, 4])) == {1, 2, 4}


async def test_everything_is_its_owners_alone(room: Room) -> None:
    before = os.umask(0o022)
    try:
        async with room.tier() as tier:
            await put(tier, {1: block(1), 2: b"in the database"})
            assert (room.path / "cache.db-wal").exists()
            for path in [room.path, *room.path.rglob("*")]:
                expected = 0o700 if path.is_dir() else 0o600
                assert stat.S_IMODE(path.stat().st_mode) == expected, path
    finally:
        os.umask(before)


# -- no connection is left to the garbage collector, nor closed by another thread (Python 3.13 warns) ---------------


class _Connection(sqlite3.Connection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_open = True
        self.thread = threading.get_ident()

    def close(self) -> None:
        assert self.thread == threading.get_ident()
        self.is_open = False
        super().close()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[_Connection]]:
    """All connections that diskcache opens."""
    opened: list[_Connection] = []
    connect = sqlite3.connect

    def tracked(*args: Any, **kwargs: Any) -> _Connection:
        opened.append(connect(*args, factory=_Connection, **kwargs))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", tracked)
    yield opened
    assert opened
    assert not any(connection.is_open for connection in opened)


async def use_all_threads(tier: DiskTier) -> None:
    barrier = threading.Barrier(disk.THREADS)

    def work() -> None:
        barrier.wait(5)
        tier._guard(lambda cache: cache.volume(), 0)

    futures = [tier._readers.submit(work) for _ in range(disk.THREADS)]
    for future in [*futures, tier._writer.submit(lambda: tier._guard(lambda cache: cache.volume(), 0))]:
        future.result(5)


async def test_every_thread_closes_its_connection(room: Room, connections: list[_Connection]) -> None:
    async with room.tier() as tier:
        await use_all_threads(tier)
        await put(tier, {1: block(1)})
    assert len({connection.thread for connection in connections}) == disk.THREADS + 1


@warns
async def test_also_after_the_directory_was_exchanged(room: Room, connections: list[_Connection]) -> None:
    async with room.tier() as tier:
        await use_all_threads(tier)
        shutil.rmtree(room.path)
        assert await got(tier, OID, [1]) == {}
        room.clock.now_s += RETRY_S
        await use_all_threads(tier)
        assert sum(connection.is_open for connection in connections) == disk.THREADS + 1


@warns
async def test_also_after_an_open_that_failed(room: Room, connections: list[_Connection]) -> None:
    room.path.mkdir(parents=True)
    (room.path / "cache.db").write_bytes(b"this is no database" * 1000)
    async with room.tier() as tier:
        await put(tier, {1: block(1)})


# -- damage -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40), st.lists(st.binary(max_size=40), min_size=1, max_size=RUN_BLOCKS), st.data())
def test_changed_bytes_are_never_taken_for_the_blocks(
    identity: bytes, contents: list[bytes], data: st.DataObject
) -> None:
    made = label(identity, contents)
    run = read_label(identity, made)
    assert run is not None
    start = data.draw(st.integers(0, len(contents) - 1))
    part = range(start, data.draw(st.integers(start + 1, len(contents))))
    whole = b"".join(contents)[run.start(part.start) : run.start(part.stop)]
    assert whole == b"".join(contents[part.start : part.stop])
    assert run.is_whole(part, memoryview(whole))
    at, flip = data.draw(st.integers(0, 10_000)), data.draw(st.integers(1, 255))
    if whole:
        assert not run.is_whole(part, memoryview(_flipped(whole, at, flip)))
        assert not run.is_whole(part, memoryview(whole[:-1]))
    assert read_label(identity, _flipped(made, at, flip)) is None
    assert read_label(identity, made[: at % len(made)]) is None
    assert read_label(identity + b"x", made) is None


def _flipped(value: bytes, at: int, flip: int) -> bytes:
    at %= len(value)
    return value[:at] + bytes([value[at] ^ flip]) + value[at + 1 :]


@pytest.mark.parametrize("found", [None, "text", 7, b"", b"x" * 44])
def test_a_planted_label_is_none(found: object) -> None:
    assert read_label(b"identity", found) is None


@warns
async def test_a_flipped_bit_anywhere_in_a_value_is_a_miss(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    async with room.tier() as tier:
        content = block(1, 4200)
        places = [*range(0, len(content), 97), len(content) - 1]
        for at in places:
            await put(tier, {1: content})
            (path,) = room.values()
            path.write_bytes(_flipped(path.read_bytes(), at, 1 << at % 8))
            assert await got(tier, OID, [1]) == {}
            assert room.values() == []  # dropped
        for at in range(len(label(b"", [content]))):
            await put(tier, {1: content})
            ((made,),) = room.execute("SELECT tag FROM Cache")
            room.execute("UPDATE Cache SET tag = ?", _flipped(made, at, 1 << at % 8))
            assert await got(tier, OID, [1]) == {}
            places.append(at)
        assert len(messages(caplog)) == 1
        assert room.stats.get("cache.disk.damaged_blocks") == len(places)


@warns
@pytest.mark.parametrize("keep", [0, 1, 15, 16, 60, 5000, 9999])
async def test_a_truncated_value_is_a_miss(room: Room, keep: int, caplog: pytest.LogCaptureFixture) -> None:
    async with room.tier() as tier:
        await put(tier, {1: block(1), 2: block(2)})
        for path in room.values():
            os.truncate(path, keep)
        assert await got(tier, OID, [1, 2]) == {}
        assert len(messages(caplog)) == 1
        await put(tier, {1: block(1)})
        assert await got(tier, OID, [1, 2]) == {1: block(1)}


async def test_a_value_that_was_removed_is_a_miss(room: Room) -> None:
    async with room.tier() as tier:
        await put(tier, {1: block(1)})
        shutil.rmtree(room.values()[0].parent)
        assert await got(tier, OID, [1]) == {}
        await put(tier, {1: block(1)})
        assert await got(tier, OID, [1]) == {1: block(1)}


@warns
@pytest.mark.parametrize("at", [0, 4, 20, 60, 15_000])
async def test_one_damaged_block_of_several_costs_only_its_own_file(room: Room, at: int) -> None:
    async with room.tier() as tier:
        await put(tier, {number: block(number) for number in range(8)})
        path = room.values()[0]
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)
        found = await got(tier, OID, range(8))
        assert found == {number: block(number) for number in found}
        assert sorted(found) in ([0, 1, 2, 3], [4, 5, 6, 7])
        assert len(room.values()) == 1


@warns
async def test_values_that_changed_places_are_misses(room: Room) -> None:
    async with room.tier() as tier:
        await put(tier, {1: block(1), 2: block(2)})
        one, two = room.values()
        one.rename(room.path / "swap")
        two.rename(one)
        (room.path / "swap").rename(two)
        assert await got(tier, OID, [1, 2]) == {}


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["LAZYFS_TEST_BOMB"],)


@warns
@pytest.mark.parametrize("mode", [3, 4])
@pytest.mark.parametrize("where", ["row", "file"])
async def test_a_planted_pickle_is_never_executed(
    room: Room, mode: int, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = tmp_path / "executed"
    monkeypatch.setenv("LAZYFS_TEST_BOMB", str(bomb))
    async with room.tier() as tier:
        await put(tier, {1: block(1), 2: block(2)})
    planted = pickle.dumps(_Bomb())
    if where == "row":
        room.execute("UPDATE Cache SET mode = ?, filename = NULL, value = ? WHERE rowid = 1", mode, planted)
    else:
        room.execute("UPDATE Cache SET mode = ? WHERE rowid = 1", mode)
        for path in room.values():
            path.write_bytes(planted)
    room.execute("UPDATE Cache SET raw = 0 WHERE rowid = 2")
    async with room.tier() as tier:
        assert await got(tier, OID, [1, 2]) == {}
        await put(tier, {3: block(3)})
        assert await got(tier, OID, [1, 2, 3]) == {3: block(3)}  # one bad row spoils nothing else
    assert not bomb.exists()


@warns
@pytest.mark.parametrize("absolute", [True, False])
async def test_a_planted_file_name_leads_nowhere(room: Room, absolute: bool, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"mine")
    async with room.tier() as tier:
        await put(tier, {1: block(1)})
    name = str(treasure) if absolute else os.path.relpath(treasure, room.path)
    room.execute("UPDATE Cache SET filename = ?", name)
    async with room.tier() as tier:
        assert await got(tier, OID, [1]) == {}
        await put(tier, {1: block(1)})
        assert await got(tier, OID, [1]) == {1: block(1)}
    assert treasure.read_bytes() == b"mine"


@warns
@pytest.mark.parametrize("key", ["directory", "get", "disk_what", "sqlite_journal_mode", "cull_limit", "size"])
async def test_planted_settings_are_survived(room: Room, key: str) -> None:
    async with room.tier() as tier:
        await put(tier, {1: block(1)})
    room.execute("INSERT OR REPLACE INTO Settings VALUES (?, 'junk')", key)
    async with room.tier() as tier:
        assert set(await got(tier, OID, [1])) <= {1}
        await put(tier, {2: block(2)})
        assert all(data == block(n) for n, data in (await got(tier, OID, [1, 2])).items())


@warns
@pytest.mark.parametrize("content", [b"this is no database" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_database_beyond_repair_is_set_aside_at_once(
    room: Room, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with room.tier() as tier:
        await put(tier, {1: block(1)})
    (room.path / "cache.db").write_bytes(content)
    async with room.tier() as tier:
        assert await got(tier, OID, [1]) == {}
        await put(tier, {1: block(1)})
        assert await got(tier, OID, [1]) == {1: block(1)}
    assert len(messages(caplog)) == 1
    assert [path.name for path in room.path.parent.iterdir()] == ["blocks"]  # nothing of the old one stays


@warns
async def test_a_database_damaged_while_open(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    async with room.tier() as tier:
        for number in range(40):
            await put(tier, {number: b"x" * 3000})
        room.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with (room.path / "cache.db").open("r+b") as file:  # all pages but the first
            file.seek(4096)
            file.write(os.urandom((room.path / "cache.db").stat().st_size - 4096))
        for _ in range(8):  # each thread may find out for itself
            assert set((await got(tier, OID, range(40))).values()) <= {b"x" * 3000}
            await use_all_threads(tier)
        await put(tier, {1: block(1)})
        assert (await got(tier, OID, [1])).get(1) in (block(1), b"x" * 3000)
    assert len(messages(caplog)) <= 2


async def test_no_thread_maps_the_database_which_somebody_may_cut(room: Room) -> None:
    async with room.tier() as tier:  # a mapped page that is gone is SIGBUS: see tests/fuse/test_cache_disk.py
        sizes = [
            pool.submit(tier._guard, lambda cache: cache._sql("PRAGMA mmap_size").fetchall(), None).result(5)
            for pool in (tier._readers, tier._writer)
        ]
    assert sizes == [[(0,)], [(0,)]]


@warns
@pytest.mark.parametrize("what", ["directory", "database"])
async def test_a_directory_removed_underneath_is_a_miss_one_warning_and_over_after_a_while(
    room: Room, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with room.tier() as tier:
        await put(tier, {1: block(1)})
        if what == "directory":
            shutil.rmtree(room.path)
        else:
            for path in room.path.glob("cache.db*"):
                path.unlink()
        for _ in range(3):
            assert await got(tier, OID, [1]) == {}
            await put(tier, {1: block(1)})
            assert await tier.used_bytes() == 0
        assert room.path.exists() == (what == "database")  # nothing is left where nobody would find it
        assert len(messages(caplog)) == 1
        room.clock.now_s += RETRY_S
        await put(tier, {1: block(1)})
        assert await got(tier, OID, [1]) == {1: block(1)}
        assert len(messages(caplog)) == 1


@warns
async def test_a_directory_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    room = Room(tmp_path / "file" / "blocks")
    async with room.tier() as tier:
        await put(tier, {1: block(1)})
        assert await got(tier, OID, [1]) == {}
        (tmp_path / "file").unlink()
        room.clock.now_s += RETRY_S - 1
        assert await tier.used_bytes() == 0
        room.clock.now_s += 1
        await put(tier, {1: block(1)})
        assert await got(tier, OID, [1]) == {1: block(1)}
    assert len(messages(caplog)) == 1


async def test_what_waits_together_is_written_in_one_transaction(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    transact = diskcache.Cache.transact
    monkeypatch.setattr(diskcache.Cache, "transact", lambda cache: begun.append(cache) or transact(cache))
    async with room.tier() as tier:
        held = threading.Event()
        tier._writer.submit(held.wait)
        done: list[int] = []
        for number in range(20):
            tier.put_soon(OID, {number: block(number)}, lambda number=number: done.append(number))
        assert tier.pending_bytes == sum(len(block(number)) for number in range(20))
        held.set()
        await tier.written()
        assert done == list(range(20))
        assert len(begun) == 1
        assert len(await got(tier, OID, range(20))) == 20


async def test_the_writer_waits_for_more_but_not_where_somebody_waits_for_it_nor_for_long(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    transact = diskcache.Cache.transact
    monkeypatch.setattr(diskcache.Cache, "transact", lambda cache: begun.append(cache) or transact(cache))
    monkeypatch.setattr(disk, "LINGER_S", 60.0)
    async with room.tier() as tier:
        for number in range(5):
            tier.put_soon(OID, {number: block(number)}, lambda: None)
            await trio.sleep(0.01)
        assert not begun
        with trio.fail_after(20):
            await tier.written()
            assert len(begun) == 1
            tier.put_soon(OID, {9: b"x" * disk.LINGER_BYTES}, lambda: None)
            await tier._idle.wait()
            tier.put_soon(OID, {10: block(10)}, lambda: None)
            await tier.forget([(OID, 20)])
            assert await got(tier, OID, [9, 10]) == {}
    monkeypatch.setattr(disk, "LINGER_S", 0.01)
    async with room.tier() as tier:
        tier.put_soon(OID, {11: block(11)}, lambda: None)
        with trio.fail_after(20):
            await tier._idle.wait()


@warns
async def test_what_was_stored_before_a_failure_stays(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    store = blockcache._BytesDisk.store
    failing = [False, False, True]

    def fails_once(self: Any, value: Any, *args: Any, **named: Any) -> Any:
        if failing and failing.pop(0):
            raise OSError(errno.EIO, "the disk is sick")
        return store(self, value, *args, **named)

    monkeypatch.setattr(blockcache._BytesDisk, "store", fails_once)
    async with room.tier() as tier:
        await put(tier, {number: block(number) for number in range(1, 8, 2)})
        room.clock.now_s += RETRY_S
        assert await got(tier, OID, range(8)) == {1: block(1), 3: block(3)}
        assert len(room.values()) == 2


async def test_foreign_files_are_left_alone(room: Room) -> None:
    room.path.mkdir(parents=True)
    (room.path / "README").write_text("mine")
    (room.path / "00" / "00").mkdir(parents=True)
    (room.path / "00" / "00" / "x.val").write_text("mine too")
    async with room.tier() as tier:
        await put(tier, {1: block(1)})
        assert await got(tier, OID, [1]) == {1: block(1)}
    assert (room.path / "README").read_text() == "mine"
    assert (room.path / "00" / "00" / "x.val").read_text() == "mine too"


async def test_a_lock_held_by_somebody_else_is_a_miss_without_a_warning(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockcache, "_LOCK_TIMEOUT_S", 0.01)
    async with room.tier() as tier:
        await put(tier, {1: block(1)})
        other = sqlite3.connect(room.path / "cache.db", isolation_level=None)
        try:
            other.execute("BEGIN EXCLUSIVE")
            await put(tier, {2: block(2)})
            assert await got(tier, OID, [1]) == {1: block(1)}  # WAL: readers go on
        finally:
            other.close()
        await put(tier, {3: block(3)})
        assert await got(tier, OID, [2, 3]) == {3: block(3)}
        assert len(room.values()) == 2  # the value that found no row is not left behind


# -- a disk that is full ------------------------------------------------------------------------------------------


@warns
async def test_the_cache_gives_way_when_others_fill_the_disk_and_says_so_once(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with room.tier() as tier:
        for number in range(40):
            await put(tier, {number: block(number)})
        total, others = 100 * MiB, 0.0

        def usage(_: Path) -> Any:
            own = sum(path.stat().st_size for path in room.values())
            return shutil._ntuple_diskusage(total, 0, int(total - others - own))  # type: ignore[attr-defined]

        monkeypatch.setattr(disk.shutil, "disk_usage", usage)
        used = await tier.used_bytes()
        assert not tier.gives_way
        others = total * (1 - disk.FREE_FLOOR) - used / 2
        for number in range(100, 140):
            await put(tier, {number: block(number)})
        assert await tier.used_bytes() <= used / 2 + 32 * KiB
        assert 139 in await got(tier, OID, [139])  # it goes on being a cache
        others = total
        await put(tier, {200: block(200)})
        assert room.values() == []
        assert room.stats.get("cache.disk.no_space") == 1
        assert tier.gives_way
        assert len(messages(caplog)) == 1
        assert "nearly full" in messages(caplog)[0]
        total, others = GiB, 0.0
        await put(tier, {201: block(201)})
        assert not tier.gives_way  # so it would be told again
        assert len(messages(caplog)) == 1


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], capture_output=True, check=False, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


@warns
async def test_a_full_disk_is_no_error(
    tmpfs: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Others took the room between the look and the write.
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(GiB, 0, GiB))  # type: ignore[attr-defined]
    room = Room(tmpfs / "blocks")
    async with room.tier() as tier:
        for number in range(40):
            await put(tier, {number: block(number, 500_000)})
        found = await got(tier, OID, range(40))
        assert 0 in found  # what was there can still be read
        assert 20 < len(found) < 36
        assert all(data == block(number, 500_000) for number, data in found.items())
        assert room.stats.get("cache.disk.no_space") == 40 - len(found)
        assert min(path.stat().st_size for path in room.values()) > 500_000  # no half files
    assert len(messages(caplog)) == 1


@warns
async def test_a_small_disk_keeps_its_floor_and_says_so_once(tmpfs: Path, caplog: pytest.LogCaptureFixture) -> None:
    room = Room(tmpfs / "blocks")
    async with room.tier() as tier:
        for number in range(80):
            await put(tier, {number: block(number, 500_000)})
        assert 79 in await got(tier, OID, [79])
        usage = shutil.disk_usage(tmpfs)
        assert usage.free >= usage.total * disk.FREE_FLOOR
    assert len(messages(caplog)) == 1


async def test_what_is_pinned_stays_when_the_rest_goes(room: Room) -> None:
    kept, other = OID, ObjectId("other", "e1")
    async with room.tier(limit=8 * MiB) as tier:
        await put(tier, {block: bytes([block]) * (256 * KiB) for block in range(8)}, kept)
        assert await tier.pin([(kept, 8)])
        assert await tier.pin([(kept, 8)]), "again is no more"
        for number in range(40):
            await put(tier, {0: bytes(512 * KiB)}, ObjectId(f"other{number}", "e"))
        assert (await tier.survey([(kept, 8)]))[0].pinned == [range(8)]
        assert len((await tier.get_many(kept, range(8))).blocks) == 8
        assert await tier.used_bytes() <= 8 * MiB
        await put(tier, {0: bytes(256 * KiB)}, other)
        assert not (await tier.survey([(other, 1)]))[0].pinned
    async with room.tier(limit=8 * MiB) as tier:  # the next mount, or another one
        held = (await tier.survey([(kept, 8)]))[0]
        assert held.pinned == [range(8)]
        assert held.stored_s is not None
        assert abs(held.stored_s - time.time()) < 60, "when it was stored is not forgotten"
        await tier.unpin([(kept, 8)])
        assert (await tier.survey([(kept, 8)]))[0].pinned == []
        for number in range(40):
            await put(tier, {0: bytes(512 * KiB)}, ObjectId(f"more{number}", "e"))
        assert (await tier.survey([(kept, 8)]))[0].runs == []


async def test_no_more_is_pinned_than_leaves_room(room: Room) -> None:
    async with room.tier(limit=4 * MiB) as tier:
        oids = [ObjectId(f"o{number}", "e") for number in range(4)]
        for oid in oids:
            await put(tier, {block: bytes(256 * KiB) for block in range(3)}, oid)
        assert await tier.pin([(oid, 3) for oid in oids])
        more = ObjectId("more", "e")
        await put(tier, {0: bytes(512 * KiB)}, more)
        assert not await tier.pin([(more, 1)]), "more than PIN_FRACTION of the limit"
        assert not (await tier.survey([(more, 1)]))[0].pinned
        assert len((await tier.get_many(more, range(1))).blocks) == 1


async def test_what_is_small_is_pinned_too(room: Room) -> None:
    async with room.tier(limit=MiB) as tier:
        await put(tier, {0: b"inline"}, OID)
        assert await tier.pin([(OID, 1)])
        await put(tier, {block: bytes(256 * KiB) for block in range(4)}, ObjectId("large", "e"))
        assert bytes((await tier.get_many(OID, range(1))).blocks[0]) == b"inline"
