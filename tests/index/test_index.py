"""The namespace on disk: what a row may and may not become, whatever is applied to it and however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.core.listing import Entry, PageFacts, Slice, slice_of_directory, slices_of_keys
from lazyfs.core.posix import Posix
from lazyfs.core.types import ROOT_INO, Kind, ObjectInfo
from lazyfs.index.base import LOCAL_ETAG, Node
from lazyfs.index.database import Index, open_index
from lazyfs.index.transactions import DamagedIndexError

IDENTITY = {"bucket": "b"}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path / "index.db", IDENTITY)
    yield index
    index.close()


def info(key: str, etag: str = "e1", size: int = 1) -> ObjectInfo:
    return ObjectInfo(key, etag, size, 0)


async def apply_keys(index: Index, *infos: ObjectInfo, now_ns: int = 1) -> None:
    """The whole bucket, in one page."""
    facts = slices_of_keys(sorted(infos, key=lambda each: each.key), root="", start="", after="", upto=None)
    with index.listing() as listing:
        await index.apply_page(facts, listing, page_ns=now_ns, began_ns=now_ns)


async def check_name(index: Index, parent: int, name: str, *entries: Entry, now_ns: int = 1) -> None:
    with index.listing() as listing:
        await index.apply_names(parent, (name, name + "/"), entries, listing, now_ns=now_ns)


def child(index: Index, path: str) -> Node:
    ino, node = ROOT_INO, None
    for name in path.split("/"):
        node = index.child(ino, name)
        assert node is not None, path
        ino = node.ino
    assert node is not None
    return node


def tree(index: Index) -> dict[str, str]:
    """Every row by its path: the ETag of a file, `/` for a directory."""
    rows = index._read.execute("SELECT ino, entry, etag FROM node WHERE ino != ?", (ROOT_INO,)).fetchall()
    found = {}
    for ino, entry, etag in rows:
        path = index.path(ino)
        assert path is not None, f"{entry!r} is below nothing"
        found[path] = "/" if entry.endswith("/") else etag
    return found


def recount(index: Index) -> tuple[int, int]:
    row = index._read.execute(
        "SELECT count(*), coalesce(sum(size), 0) FROM node WHERE substr(entry, -1) != '/' AND entry != ''"
    ).fetchone()
    return int(row[0]), int(row[1])


# -- inode numbers ----------------------------------------------------------------------------------------------


async def test_an_unchanged_object_keeps_its_number_and_a_changed_one_gets_a_new_one(index: Index) -> None:
    await apply_keys(index, info("a", "e1"), info("d/b", "e1"))
    a, b, d = child(index, "a"), child(index, "d/b"), child(index, "d")
    await apply_keys(index, info("a", "e1"), info("d/b", "e2"))
    assert child(index, "a").ino == a.ino
    assert child(index, "d").ino == d.ino
    changed = child(index, "d/b")
    assert changed.ino > max(a.ino, b.ino, d.ino)
    assert changed.etag == "e2"
    assert index.node(b.ino) is None


async def test_a_new_time_alone_is_no_change(index: Index) -> None:
    await apply_keys(index, ObjectInfo("a", "e1", 1, 5))
    before = child(index, "a")
    await apply_keys(index, ObjectInfo("a", "e1", 1, 99))
    assert child(index, "a") == before


async def test_modes_and_owners_stay_with_a_version_and_its_inode(index: Index) -> None:
    await apply_keys(index, info("a", "e1"), info("d/b", "e1"))
    a, d = child(index, "a"), child(index, "d")
    assert (a.mode, a.uid, a.gid) == (None, None, None)
    for ino in (a.ino, d.ino):
        await index.describe(ino, Posix(mode=0o100755, uid=1))
        node = await index.describe(ino, Posix(gid=2, mtime_ns=3))
        assert node is not None
        assert (node.mode, node.uid, node.gid, node.mtime_ns) == (0o100755, 1, 2, 3)
    described, directory = child(index, "a"), child(index, "d")
    await apply_keys(index, info("a", "e1"), info("d/b", "e1"))
    assert (child(index, "a"), child(index, "d").mode) == (described, directory.mode)
    moved = await index.move_entry(described, d.ino, "c", Entry("c", 1, 3, "e1"), now_ns=1)
    assert (moved.mode, moved.uid, moved.gid) == (0o100755, 1, 2)
    await apply_keys(index, info("d/b", "e1"), info("d/c", "e2"))
    assert (child(index, "d/c").mode, child(index, "d/c").uid) == (None, None)
    assert await index.describe(a.ino, Posix(mode=1)) is None


async def test_what_is_not_known_of_a_mode_and_owner_stays_as_it_was(index: Index) -> None:
    first = await index.put_entry(ROOT_INO, Entry("a", 1, 1, "e1"), now_ns=1, posix=Posix(mode=0o100600, uid=1, gid=2))
    assert (first.mode, first.uid, first.gid, first.kind) == (0o100600, 1, 2, Kind.FILE)
    again = await index.put_entry(ROOT_INO, Entry("a", 2, 2, "e2"), now_ns=1, posix=Posix(uid=7))
    assert (again.ino, again.mode, again.uid, again.gid) == (first.ino, 0o100600, 7, 2)
    link = await index.put_entry(ROOT_INO, Entry("a", 2, 2, "e2"), now_ns=1, posix=Posix(mode=0o120777))
    assert link.kind is Kind.SYMLINK


async def test_numbers_are_never_given_twice_not_even_after_a_restart(tmp_path: Path) -> None:
    path, seen = tmp_path / "index.db", set()
    for turn in range(5):
        with contextlib.closing(Index(path, IDENTITY)) as index:
            await apply_keys(index, info("a", f"e{turn}"), info("z/b", f"e{turn}"))
            fresh = {child(index, "a").ino, child(index, "z/b").ino, child(index, "z").ino}
            assert not fresh & seen
            seen |= fresh
            await apply_keys(index)
            assert tree(index) == {}


async def test_an_index_outlives_its_mount(tmp_path: Path) -> None:
    with contextlib.closing(Index(tmp_path / "index.db", IDENTITY)) as index:
        await apply_keys(index, info("a"), info("d/b", size=7))
        before = tree(index), child(index, "d/b")
        await index.set_meta("k", "v")
    with contextlib.closing(Index(tmp_path / "index.db", IDENTITY)) as index:
        assert (tree(index), child(index, "d/b")) == before
        assert index.meta("k") == "v"
        assert index.meta("other") is None
        assert (index.files, index.bytes) == (2, 8)


# -- what is seen -------------------------------------------------------------------------------------------------


async def test_a_directory_hides_the_file_of_its_name_until_it_goes(index: Index) -> None:
    await apply_keys(index, info("a", "e1"), info("a/b"))
    assert child(index, "a").kind is Kind.DIRECTORY
    assert [node.entry for node in index.children(ROOT_INO, limit=9)] == ["a/"]
    await apply_keys(index, info("a", "e1"))
    assert child(index, "a").kind is Kind.FILE
    assert [node.entry for node in index.children(ROOT_INO, limit=9)] == ["a"]


async def test_children_come_in_pages_in_the_order_of_keys(index: Index) -> None:
    names = ["A", "a", "a b", "a-b", "a.b", "ab", "é", "ü", "一", "😀"]
    await apply_keys(index, *(info(name) for name in names), info("a/x"), info("ab/x"))
    found: list[str] = []
    while page := index.children(ROOT_INO, after=found[-1] if found else "", limit=3):
        found += [node.entry for node in page]
    assert found == sorted([*(set(names) - {"a", "ab"}), "a/", "ab/"], key=str.encode)
    assert index.is_empty(child(index, "😀").ino)
    assert not index.is_empty(child(index, "ab").ino)


async def test_paths_lead_there_and_back(index: Index) -> None:
    await apply_keys(index, info("a/b/c"))
    b = child(index, "a/b").ino
    assert index.path(b) == "a/b/"
    assert index.find_directory("a/b") == b
    assert index.find_directory("") == ROOT_INO
    assert index.find_directory("a/b/c") is None
    await apply_keys(index)
    assert index.path(b) is None


async def test_asking_for_one_name_settles_it_as_file_and_as_directory(index: Index) -> None:
    await check_name(index, ROOT_INO, "a", Entry("a", 3, 0, "e1"), Entry("a/"))
    assert tree(index) == {"a": "e1", "a/": "/"}
    await check_name(index, ROOT_INO, "a", Entry("a", 3, 0, "e1"))
    assert tree(index) == {"a": "e1"}
    await check_name(index, ROOT_INO, "a", Entry("a/"))
    assert tree(index) == {"a/": "/"}
    await check_name(index, ROOT_INO, "a")
    assert tree(index) == {}
    await check_name(index, 4711, "a", Entry("a/"))
    assert tree(index) == {}


async def test_asking_for_one_name_says_nothing_of_others_and_renews_its_proof(index: Index) -> None:
    await apply_keys(index, info("a"), info("ab"), info("a-b"), info("a/b"), now_ns=1)
    await check_name(index, ROOT_INO, "a", Entry("a", 1, 0, "e1"), Entry("a/"), now_ns=5)
    assert set(tree(index)) == {"a", "ab", "a-b", "a/", "a/b"}
    assert child(index, "a").checked_ns == 5
    assert child(index, "ab").checked_ns == 1


async def test_a_listed_directory_says_since_when(index: Index) -> None:
    await apply_keys(index, info("a/b"), now_ns=3)
    assert child(index, "a").listed_ns == 3
    node = index.node(ROOT_INO)
    assert node is not None
    assert node.listed_ns == 3
    await check_name(index, child(index, "a").ino, "c", Entry("c/"))
    assert child(index, "a/c").listed_ns is None


# -- our own changes ------------------------------------------------------------------------------------------------


async def test_our_own_change_keeps_the_number_and_a_rename_takes_it_along(index: Index) -> None:
    made = await index.put_entry(ROOT_INO, Entry("a", 0, 1, LOCAL_ETAG), now_ns=1)
    written = await index.put_entry(ROOT_INO, Entry("a", 9, 2, "e1"), now_ns=2)
    assert written.ino == made.ino
    assert (written.size, written.mtime_ns, written.etag, written.checked_ns) == (9, 2, "e1", 2)
    await index.put_entry(ROOT_INO, Entry("b", 5, 2, "e2"), now_ns=2)
    moved = await index.move_entry(written, ROOT_INO, "b", Entry("b", 9, 2, "e3"), now_ns=3)
    assert (moved.ino, moved.etag) == (made.ino, "e3")
    assert tree(index) == {"b": "e3"}
    assert (index.files, index.bytes) == (1, 9) == recount(index)


async def test_a_directory_of_our_own_is_known_to_be_empty(index: Index) -> None:
    made = await index.put_entry(ROOT_INO, Entry("d/"), now_ns=4)
    assert made.listed_ns == 4
    assert index.is_empty(made.ino)
    await index.remove_entry(ROOT_INO, "d/")
    assert tree(index) == {}


async def test_no_listing_touches_what_is_being_written(index: Index) -> None:
    await apply_keys(index, info("d/x"))
    parent = child(index, "d").ino
    local = await index.put_entry(parent, Entry("new", 0, 1, LOCAL_ETAG), now_ns=1)
    await apply_keys(index, info("d/new", "theirs"))  # somebody else made it too
    assert index.node(local.ino) == local
    await apply_keys(index)  # all else is gone
    assert tree(index) == {"d/": "/", "d/new": LOCAL_ETAG}
    await check_name(index, ROOT_INO, "d")
    await check_name(index, parent, "new")
    assert index.node(local.ino) == local
    await index.remove_local()
    assert tree(index) == {"d/": "/"}
    assert recount(index) == (index.files, index.bytes) == (0, 0)


async def test_what_changed_here_during_a_listing_wins_over_it(index: Index) -> None:
    await apply_keys(index, info("gone"), info("rewritten"), info("moved"))
    old = slices_of_keys([info("gone"), info("moved"), info("rewritten")], root="", start="", after="", upto=None)
    with index.listing() as listing:
        await index.remove_entry(ROOT_INO, "gone")
        await index.put_entry(ROOT_INO, Entry("rewritten", 2, 2, "ours"), now_ns=2)
        await index.put_entry(ROOT_INO, Entry("made", 2, 2, "ours"), now_ns=2)
        await index.put_entry(ROOT_INO, Entry("directory/"), now_ns=2)
        await index.move_entry(child(index, "moved"), ROOT_INO, "new", Entry("new", 1, 0, "ours"), now_ns=2)
        await index.apply_page(old, listing, page_ns=1, began_ns=1)
    assert tree(index) == {"rewritten": "ours", "made": "ours", "directory/": "/", "new": "ours"}
    await apply_keys(index, info("gone"))  # a listing that begins later knows better
    assert tree(index) == {"gone": "e1"}


async def test_a_file_whose_arrival_a_kill_kept_from_being_noted_is_asked_for(index: Index) -> None:
    directory = await index.put_entry(ROOT_INO, Entry("d/"), now_ns=1)
    await index.put_entry(directory.ino, Entry("f", 1, 1, LOCAL_ETAG), now_ns=1)
    await index.remove_local()
    known = index.node(directory.ino)
    assert known is not None
    assert known.listed_ns is None
    assert tree(index) == {"d/": "/"}


async def test_only_what_changed_after_the_facts_were_asked_for_is_newer_than_they(index: Index) -> None:
    with index.listing() as early:
        await index.put_entry(ROOT_INO, Entry("a", 1, 1, "ours"), now_ns=1)
        with index.listing() as late:
            facts = slices_of_keys([], root="", start="", after="", upto=None)
            await index.apply_page(facts, early, page_ns=1, began_ns=1)
            assert tree(index) == {"a": "ours"}
            await index.apply_page(facts, late, page_ns=1, began_ns=1)
            assert tree(index) == {}


async def test_a_directory_that_a_listing_does_not_know_keeps_what_is_newer_than_the_listing(index: Index) -> None:
    directory = await index.put_entry(ROOT_INO, Entry("d/"), now_ns=1)
    await index.put_entry(directory.ino, Entry("old", 1, 1, "theirs"), now_ns=1)
    with index.listing() as listing:
        await index.put_entry(directory.ino, Entry("new", 1, 1, "ours"), now_ns=1)
        index.hold("d/held")
        await index.put_entry(directory.ino, Entry("held", 1, 1, "ours too"), now_ns=1)
        facts = slices_of_keys([], root="", start="", after="", upto=None)
        index.note_local(ROOT_INO, "other")
        await index.apply_page(facts, listing, page_ns=1, began_ns=1)
        assert tree(index) == {"d/": "/", "d/held": "ours too", "d/new": "ours"}
        index.let_go("d/held")
        await index.apply_page(facts, listing, page_ns=1, began_ns=1)
        assert "d/held" in tree(index)
    with index.listing() as later:
        await index.apply_page(facts, later, page_ns=1, began_ns=1)
        assert tree(index) == {}


# -- any tree into any other ----------------------------------------------------------------------------------------

_names = st.sampled_from(["a", "b", "a-", "ab", "é", "."])
_keys = st.one_of(
    st.lists(_names, min_size=1, max_size=3).map("/".join),
    st.lists(_names, min_size=1, max_size=2).map(lambda parts: "/".join(parts) + "/"),
    st.sampled_from(["a//b", "/", "//", "b/../a"]),
)
_buckets = st.dictionaries(_keys, st.tuples(st.sampled_from(["e1", "e2"]), st.integers(0, 3)), max_size=12)
_FIXED = settings(
    derandomize=True, deadline=None, database=None, max_examples=120, suppress_health_check=list(HealthCheck)
)


def rows_of(bucket: dict[str, tuple[str, int]]) -> dict[str, str]:
    """What the index must hold: the plain reading of the rules, one key at a time."""
    rows: dict[str, str] = {}
    for key, (etag, _) in bucket.items():
        parts = key.split("/")
        for depth, part in enumerate(parts):
            if part in ("", ".", ".."):
                break
            last = depth == len(parts) - 1
            rows["/".join(parts[: depth + 1]) + ("" if last else "/")] = etag if last else "/"
    return rows


@contextlib.asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[Index]:
    index = Index(path, IDENTITY)
    try:
        yield index
    finally:
        index.close()


async def _apply_recursively(index: Index, bucket: dict[str, tuple[str, int]], page: int, now_ns: int) -> None:
    infos = [info(key, *bucket[key]) for key in sorted(bucket)]
    after, start = "", 0
    with index.listing() as listing:
        while True:
            piece = infos[start : start + page]
            start += page
            upto = piece[-1].key if start < len(infos) else None
            facts = slices_of_keys(piece, root="", start="", after=after, upto=upto)
            await index.apply_page(facts, listing, page_ns=now_ns, began_ns=now_ns)
            if upto is None:
                return
            after = upto


async def _apply_by_directory(index: Index, bucket: dict[str, tuple[str, int]], path: str, now_ns: int) -> None:
    objects = [
        info(key, *bucket[key]) for key in sorted(bucket) if key.startswith(path) and "/" not in key[len(path) :]
    ]
    prefixes = sorted(
        {
            path + key[len(path) :].split("/")[0] + "/"
            for key in bucket
            if "/" in key[len(path) :] and key.startswith(path)
        }
    )
    piece, skipped = slice_of_directory(path, objects, prefixes, root="", after="", last=True)
    with index.listing() as listing:
        facts = PageFacts([piece], [path], skipped)
        await index.apply_page(facts, listing, page_ns=now_ns, began_ns=now_ns)
    for entry in piece.entries:
        if entry.is_dir:
            await _apply_by_directory(index, bucket, path + entry.name, now_ns)


@_FIXED
@given(buckets=st.lists(_buckets, min_size=1, max_size=4), page=st.integers(1, 5), recursive=st.booleans())
def test_any_bucket_becomes_any_other(
    tmp_path_factory: pytest.TempPathFactory, buckets: list[dict[str, tuple[str, int]]], page: int, recursive: bool
) -> None:
    async def run() -> None:
        meant: dict[int, tuple[str, str]] = {}
        async with _opened(tmp_path_factory.mktemp("index") / "index.db") as index:
            last: dict[str, tuple[str, int, int]] = {}
            for turn, bucket in enumerate(buckets, 1):
                if recursive:
                    await _apply_recursively(index, bucket, page, turn)
                else:
                    await _apply_by_directory(index, bucket, "", turn)
                assert tree(index) == rows_of(bucket)
                assert recount(index) == (index.files, index.bytes)
                now = {}
                for ino, etag, size in index._read.execute("SELECT ino, etag, size FROM node WHERE parent != 0"):
                    path = index.path(ino)
                    assert path is not None
                    now[path] = (etag, size, ino)
                    assert meant.setdefault(ino, (path, etag)) == (path, etag), "a number was given twice"
                for path, (etag, size, ino) in last.items():
                    if path in now and now[path][:2] == (etag, size):
                        assert now[path][2] == ino, "unchanged, and its number changed"
                last = now

    trio.run(run)


@_FIXED
@given(
    known=_buckets,
    answers=st.lists(st.tuples(_names, st.booleans(), st.booleans()), max_size=8),
)
def test_names_alone_become_whatever_is_answered(
    tmp_path_factory: pytest.TempPathFactory,
    known: dict[str, tuple[str, int]],
    answers: list[tuple[str, bool, bool]],
) -> None:
    async def run() -> None:
        async with _opened(tmp_path_factory.mktemp("index") / "index.db") as index:
            await _apply_recursively(index, known, 100, 1)
            rows = rows_of(known)
            for name, is_file, is_dir in answers:
                found = [Entry(name, 1, 0, "new")] * is_file + [Entry(name + "/")] * is_dir
                await check_name(index, ROOT_INO, name, *found)
                if not is_dir:
                    rows = {path: etag for path, etag in rows.items() if not path.startswith(name + "/")}
                rows.pop(name, None)
                rows |= {name: "new"} if is_file else {}
                rows |= {name + "/": "/"} if is_dir else {}
                assert tree(index) == rows
                assert recount(index) == (index.files, index.bytes)

    trio.run(run)


# -- a file that may be anything ------------------------------------------------------------------------------------


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 400)


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _zeroed_head(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[:100] = bytes(100)
    path.write_bytes(data)


def _older(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 0")
        db.commit()


def _foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("""UPDATE meta SET value = '{"bucket": "another"}' WHERE key = 'identity'""")
        db.commit()


def _no_identity(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM meta")
        db.commit()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _broken_identity(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE meta SET value = 'not json' WHERE key = 'identity'")
        db.commit()


def _table_missing(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE total")
        db.commit()


@pytest.mark.parametrize(
    "harm",
    [_garbage, _cut_off, _zeroed_head, _older, _foreign, _no_identity, _empty, _broken_identity, _table_missing],
)
async def test_a_file_that_is_no_index_of_ours_is_set_aside_with_a_warning(tmp_path: Path, harm) -> None:  # type: ignore[no-untyped-def]
    path, warnings = tmp_path / "index.db", []
    with contextlib.closing(Index(path, IDENTITY)) as index:
        await apply_keys(index, *(info(f"d/{number}") for number in range(2000)))
    harm(path)
    was = path.read_bytes()
    with contextlib.closing(open_index(path, IDENTITY, warnings.append)) as index:
        assert tree(index) == {}
        await apply_keys(index, info("a"))
        assert tree(index) == {"a": "e1"}
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    if was:  # SQLite begins a database in an empty file
        assert path.with_suffix(".damaged").read_bytes() == was
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_sound_index_is_not_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    Index(path, IDENTITY).close()

    def warn(message: str) -> None:
        pytest.fail(message)

    open_index(path, IDENTITY, warn).close()
    with pytest.raises(DamagedIndexError):
        Index(path, {"bucket": "c"})


WRITER = textwrap.dedent("""
    import sys, trio
    from pathlib import Path
    from lazyfs.core.listing import slices_of_keys
    from lazyfs.core.types import ObjectInfo
    from lazyfs.index.database import Index

    async def main():
        index = Index(Path(sys.argv[1]), {"bucket": "b"})
        turn = 0
        while True:
            infos = [ObjectInfo(f"d{n % 7}/{n:05}", f"e{turn}", 1, 0) for n in range(700)]
            infos.sort(key=lambda info: info.key)
            facts = slices_of_keys(infos, root="", start="", after="", upto=None)
            with index.listing() as listing:
                await index.apply_page(facts, listing, page_ns=turn, began_ns=turn)
            turn += 1
            print(turn, flush=True)

    trio.run(main)
""")


@pytest.mark.parametrize("turns", [1, 2, 5])
async def test_a_writer_that_is_killed_leaves_whole_transactions(tmp_path: Path, turns: int) -> None:
    path = tmp_path / "index.db"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, os.fspath(path)], stdout=subprocess.PIPE, cwd=root, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(turns):  # it is in the middle of the next one now
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def warn(message: str) -> None:
        pytest.fail(message)

    with contextlib.closing(open_index(path, IDENTITY, warn)) as index:
        files = {path: etag for path, etag in tree(index).items() if etag != "/"}
        assert len(files) == 700
        assert len(set(files.values())) == 1, "half of a transaction is there"
        assert (index.files, index.bytes) == (700, 700) == recount(index)
        await apply_keys(index, info("a"))
        assert tree(index) == {"a": "e1"}


async def test_a_reader_never_waits_for_a_writer_nor_sees_half_of_its_work(index: Index) -> None:
    """The kernel's look-ups go on while a page is applied in a thread."""
    await apply_keys(index, *(info(f"{number:04}", "old") for number in range(1000)))
    seen: list[set[str]] = []

    async def read() -> None:
        while True:
            rows = index.children(ROOT_INO, limit=2000)
            seen.append({node.etag for node in rows})
            assert len(rows) == 1000
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await apply_keys(index, *(info(f"{number:04}", "new") for number in range(1000)))
        nursery.cancel_scope.cancel()
    assert all(len(etags) == 1 for etags in seen)


async def test_a_failed_transaction_changes_nothing(index: Index) -> None:
    await apply_keys(index, info("a"))
    bad = PageFacts([Slice("", "", None, [Entry("b", 1, 0, "e1"), Entry("b", 1, 0, "e1")])], [""], [])
    with index.listing() as listing, pytest.raises(sqlite3.IntegrityError):
        await index.apply_page(bad, listing, page_ns=2, began_ns=2)
    assert tree(index) == {"a": "e1"}
    assert recount(index) == (index.files, index.bytes) == (1, 1)
    await apply_keys(index, info("c"))
    assert tree(index) == {"c": "e1"}
