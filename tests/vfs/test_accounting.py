"""Who reads and writes what, and what a run was like: counted right, per open, whatever happens meanwhile."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lazyfs.core.beginning import FIRST_FILES
from lazyfs.core.passes import LATEST
from lazyfs.core.types import Range
from lazyfs.lifecycle.report import MAX_PATH, MAX_PROGRAMS
from lazyfs.lifecycle.verbs import Lifecycle
from lazyfs.vfs import accounting
from lazyfs.vfs.procfs import Program, program_of
from tests.vfs.building import Knobs, Mount, mounted
from tests.vfs.stores import ScriptedStore


@asynccontextmanager
async def room(store: ScriptedStore, tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Mount, dict[str, Any]]]:
    async with mounted(store, tmp_path / "index", ttl_s=float("inf"), knobs=Knobs(memory=2**16), **options) as m:
        await m.namespace.refresh()
        made = Lifecycle(m.fs, index=m.index, fetcher=m.fetcher, cache=m.cache, backlog=m.backlog, nursery=m.nursery)
        yield m, made.verbs()


def filled(**files: int) -> ScriptedStore:
    store = ScriptedStore()
    for name, size in files.items():
        store.put_now(name.replace("__", "/"), bytes(size))
    return store


def passes(told: dict[str, Any]) -> dict[int, tuple[int, int, dict[str, int]]]:
    return {one["pass"]: (one["opens"], one["file_bytes"], one["bytes"]) for one in told["passes"]}


async def test_each_pass_has_its_opens_and_its_bytes_by_tier(tmp_path: Path) -> None:
    async with room(filled(a__x=100, a__y=50, b__z=30), tmp_path) as (m, verbs):
        for _ in range(2):
            for path in ("a/x", "a/y"):
                await m.read(path)
        await m.read("b/z")
        told = await verbs["report"]({})
        assert passes(told) == {1: (3, 180, {"s3": 180}), 2: (2, 150, {"memory": 150})}
        assert told["files"] == {"listed": 3, "bytes": 180, "opened": 3, "never_opened": 0}
        hot = {one["path"]: (one["files"], one["opens"], one["bytes"]) for one in told["directories"]["hottest"]}
        assert hot == {"a": (2, 4, 300), "b": (1, 1, 30)}
        assert next(iter(hot)) == "a"
        assert told["s3"]["read_bytes"] == 180
        assert told["file_mode"]["opened_bytes"] == told["file_mode"]["listed_bytes"] == 180
        assert told["waits"]["reads"] == told["waits"]["all"]["count"] == told["waits"]["tiers"]["s3"]["count"]


async def test_cold_directories_are_those_of_which_nothing_was_opened(tmp_path: Path) -> None:
    store = filled(root=7, hot__x=10, hot__deep__y=500, cold__a=30, cold__b=40, colder=0)
    async with room(store, tmp_path) as (m, verbs):
        await m.read("hot/x")
        told = (await verbs["report"]({}))["directories"]["unread"]
        assert [(one["path"], one["files"], one["bytes"]) for one in told["largest"]] == [
            ("hot/deep", 1, 500),
            ("cold", 2, 70),
            ("", 2, 7),
        ]
        assert (told["count"], told["files"], told["bytes"]) == (3, 5, 577)
        m.fs.accounting.run.directories._limit = 1
        await m.read("cold/a")
        assert (await verbs["report"]({}))["directories"]["unread"] is None, "cold counts for the root by now"


async def test_an_index_that_somebody_deleted_is_only_not_told_of(tmp_path: Path) -> None:
    async with room(filled(f=10), tmp_path) as (m, verbs):
        for path in tmp_path.glob("index*"):
            path.unlink()
        told = await verbs["report"]({})
        assert told["directories"]["unread"] is None
        assert told["files"]["listed"] == 1
        assert not m.index.file.exists()


async def test_what_is_open_counts_before_it_is_closed_and_only_once(tmp_path: Path) -> None:
    async with room(filled(f=100), tmp_path) as (m, verbs):
        ino, fh = await m.open("f")
        await m.fs.read(ino, fh, Range(0, 40))
        for _ in range(3):
            assert sum(passes(await verbs["report"]({}))[1][2].values()) == 40
        await m.fs.read(ino, fh, Range(40, 100))
        await m.fs.release(ino, fh)
        assert sum(passes(await verbs["report"]({}))[1][2].values()) == 100
        (program,) = (await verbs["programs"]({}))["programs"]
        assert (program["read_bytes"], program["open_files"], program["files"]) == (100, 0, [])


async def test_a_reset_begins_anew_and_what_is_open_is_opened_again(tmp_path: Path) -> None:
    async with room(filled(f=100, g=60), tmp_path) as (m, verbs):
        ino, fh = await m.open("f")
        await m.fs.read(ino, fh, Range(0, 100))
        await m.read("g")
        before = await verbs["report"]({"reset": True})
        assert (before["since"], passes(before)[1][0]) == ("mount", 2)
        fresh = await verbs["report"]({})
        assert fresh["since"] == "reset"
        assert passes(fresh) == {1: (1, 100, {})}
        assert fresh["waits"]["all"]["count"] == fresh["waits"]["reads"] == fresh["s3"]["read_bytes"] == 0
        assert fresh["s3"]["requests"] == {}
        assert fresh["beginning"]["first_open_s"] == pytest.approx(0, abs=1)
        assert fresh["beginning"]["first_byte_s"] is None
        assert fresh["files"]["never_opened"] == 1
        await m.fs.read(ino, fh, Range(0, 100))
        await m.fs.release(ino, fh)
        assert passes(await verbs["report"]({})) == {1: (1, 100, {"memory": 100})}
        (program,) = (await verbs["programs"]({}))["programs"]
        assert (program["opens"], program["read_bytes"]) == (2, 260)  # a program's sums are those of the mount


async def test_what_was_read_before_a_new_run_is_not_of_it(tmp_path: Path) -> None:
    async with room(filled(f=100), tmp_path) as (m, _):
        ino, fh = await m.open("f")
        await m.fs.read(ino, fh, Range(0, 60))
        m.fs.accounting.restart()
        await m.fs.read(ino, fh, Range(60, 100))
        await m.fs.release(ino, fh)
        assert sum(m.fs.accounting.settled().by_pass[1].tiers.values()) == 40


async def test_a_program_that_has_ended_is_still_the_one_that_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "BELIEVED_S", -1.0)
    async with room(filled(f=100), tmp_path) as (m, verbs):
        m.fs.accounting._whose = lambda thread: Program(7, "python", 70)
        ino, fh = await m.open("f")
        await m.fs.read(ino, fh, Range(0, 100))
        m.fs.accounting._whose = Program
        await m.fs.release(ino, fh)
        (told,) = (await verbs["programs"]({}))["programs"]
        assert (told["pid"], told["name"], told["read_bytes"]) == (7, "python", 100)
        m.fs.accounting._whose = lambda thread: Program(7, "another", 80)  # the number is used again
        await m.read("f")
        assert [one["name"] for one in (await verbs["programs"]({}))["programs"]] == ["another", "python"]


async def test_the_beginning_is_the_first_open_byte_and_batch(tmp_path: Path) -> None:
    async with room(filled(**{f"f{number}": 10 for number in range(FIRST_FILES)}), tmp_path) as (m, verbs):
        assert set((await verbs["report"]({}))["beginning"].values()) == {None, FIRST_FILES, 8 * 2**20}
        ino, fh = await m.open("f0")
        opened = (await verbs["report"]({}))["beginning"]
        assert opened["first_open_s"] is not None
        assert opened["first_byte_s"] is None
        await m.fs.release(ino, fh)  # nothing was read of it
        for number in range(FIRST_FILES - 1):
            await m.read(f"f{number}")
        almost = (await verbs["report"]({}))["beginning"]
        assert almost["first_byte_s"] >= almost["first_open_s"]
        assert almost["first_batch_s"] is None
        await m.read(f"f{FIRST_FILES - 1}")
        after = (await verbs["report"]({}))["beginning"]
        assert after["first_batch_s"] >= after["first_byte_s"] == almost["first_byte_s"]


async def test_programs_are_told_with_what_they_have_open(tmp_path: Path) -> None:
    async with room(filled(d__f=100), tmp_path, root="") as (m, verbs):
        own, name = os.getpid(), Path("/proc/self/comm").read_text().strip()
        parent, _ = await m.parent_of("d/new")
        fh, attributes = await m.fs.create(parent, "new", own)
        await m.fs.write(attributes.ino, fh, 0, b"x" * 24)
        ino = (await m.lookup("d/f")).ino
        reading = await m.fs.open(ino, os.O_RDONLY, own)
        await m.fs.read(ino, reading, Range(0, 100))
        (told,) = (await verbs["programs"]({}))["programs"]
        assert (told["pid"], told["name"], told["opens"], told["open_files"]) == (own, name, 2, 2)
        assert (told["read_bytes"], told["written_bytes"]) == (100, 24)
        assert told["waited_s"] > 0
        assert [(one["path"], one["writable"], one["read_bytes"], one["written_bytes"]) for one in told["files"]] == [
            ("d/f", False, 100, 0),
            ("d/new", True, 0, 24),
        ]
        await m.fs.flush(attributes.ino, fh)
        await m.fs.release(attributes.ino, fh)
        await m.fs.release(ino, reading)


async def test_a_program_that_is_gone_or_unseen_is_told_by_its_number(tmp_path: Path) -> None:
    async with room(filled(f=10), tmp_path) as (m, verbs):
        ino = (await m.lookup("f")).ino
        for pid in (0, 2**22 + 5):
            await m.fs.release(ino, await m.fs.open(ino, os.O_RDONLY, pid))
        told = [(one["pid"], one["name"]) for one in (await verbs["programs"]({}))["programs"]]
        assert told == [(2**22 + 5, ""), (0, "")]


async def test_a_long_answer_is_bounded(tmp_path: Path) -> None:
    deep = "/".join(["é" * 100] * 4)
    async with room(filled(**{f"{deep.replace('/', '__')}__f": 10}), tmp_path) as (m, verbs):
        m.fs.accounting._whose = lambda pid: Program(pid, "p", pid)
        ino = (await m.lookup(f"{deep}/f")).ino
        handles = [await m.fs.open(ino, os.O_RDONLY, pid) for pid in range(1, MAX_PROGRAMS + 20)]
        found = (await verbs["programs"]({}))["programs"]
        assert len(found) == MAX_PROGRAMS
        assert all(len(one["path"]) == MAX_PATH for program in found for one in program["files"])
        for fh in handles:
            await m.fs.release(ino, fh)
        for _ in range(LATEST):
            await m.read(f"{deep}/f")
        told = await verbs["report"]({})
        assert max(passes(told)) == LATEST
        assert told["files"]["opened"] == 1


def test_a_thread_is_told_as_its_process() -> None:
    own = program_of(os.getpid())
    assert own.started > 0
    assert own.name == Path("/proc/self/comm").read_text().strip()
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    assert {program_of(thread) for thread in threads} == {own}
    assert program_of(0) == Program(0)
    assert program_of(-1) == Program(0)
