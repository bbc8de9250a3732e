"""A snapshot is installed as it was made, or not at all."""

from __future__ import annotations

import contextlib
import gzip
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.core.listing import Entry, PageFacts, Slice
from lazyfs.core.posix import Posix
from lazyfs.core.types import ROOT_INO
from lazyfs.index.base import LOCAL_ETAG
from lazyfs.index.database import Index
from lazyfs.index.snapshot import MAX_RATIO, MIN_LIMIT, SnapshotError, install, pack, sweep

IDENTITY = {"endpoint": "http://server", "bucket": "bucket", "prefix": "a/"}
LISTED_NS = 1_000_000_000
FILES = [Entry(f"file-{number:03}", number, 5, f"{number:032x}") for number in range(300)]


async def make_index(path: Path, *, listed_ns: int = LISTED_NS, complete: bool = True) -> None:
    """An index file of a root with FILES, and a file that is still being written in directory `d/`."""
    index = Index(path, IDENTITY)
    with index.listing() as listing:
        pieces = [Slice("", "", None, [Entry("d/"), *FILES]), Slice("d/", "", None, [Entry("x", 7, 5, "e")])]
        facts = PageFacts(pieces, ["", "d/"] if complete else ["d/"], [])
        await index.apply_page(facts, listing, page_ns=listed_ns, began_ns=listed_ns)
    directory = index.child(ROOT_INO, "d")
    assert directory is not None
    await index.put_entry(directory.ino, Entry("half", 9, 5, LOCAL_ETAG), now_ns=listed_ns)
    await index.set_meta("capabilities of reads", "{}")
    index.close()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Index]:
    with contextlib.closing(Index(path, IDENTITY)) as index:
        yield index


def repacked(snapshot: Path, target: Path, change: Callable[[sqlite3.Connection], object]) -> Path:
    """The snapshot after somebody has changed the database in it."""
    plain = target.with_suffix(".plain")
    plain.write_bytes(gzip.decompress(snapshot.read_bytes()))
    with contextlib.closing(sqlite3.connect(plain, isolation_level=None)) as db:
        change(db)
    target.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return target


# -- there and back -------------------------------------------------------------------------------------------


async def test_a_snapshot_holds_the_bucket_and_nothing_of_the_moment(tmp_path: Path) -> None:
    await make_index(tmp_path / "index.db")
    told = pack(tmp_path / "index.db", tmp_path / "snap")
    assert stat.S_IMODE((tmp_path / "snap").stat().st_mode) == 0o600
    assert told == {
        "files": len(FILES) + 1,
        "bytes": sum(entry.size for entry in FILES) + 7,
        "packed": (tmp_path / "snap").stat().st_size,
    }
    there = tmp_path / "there"
    there.mkdir()
    assert install(tmp_path / "snap", there / "index.db", IDENTITY, name="snap")
    assert os.listdir(there) == ["index.db"]
    with opened(there / "index.db") as index:
        children = index.children(ROOT_INO, after="", limit=1000)
        assert [node.entry for node in children] == ["d/", *(entry.name for entry in FILES)]
        directory = index.child(ROOT_INO, "d")
        assert directory is not None
        assert directory.listed_ns is None, "the bucket may have another file of the unfinished one's name"
        assert [node.entry for node in index.children(directory.ino, after="", limit=9)] == ["x"]
        assert (index.files, index.bytes) == (told["files"], told["bytes"])
        assert index.meta("capabilities of reads") is None
        made = await index.put_entry(ROOT_INO, Entry("new", 1, 1, "e"), now_ns=1)
        assert made.ino > max(node.ino for node in children), "a number is never given out twice"
    pack(there / "index.db", tmp_path / "again")  # one that was installed can be handed on
    assert sorted(os.listdir(tmp_path)) == ["again", "index.db", "snap", "there"]


async def test_it_can_be_made_while_the_index_is_written_to(tmp_path: Path) -> None:
    await make_index(tmp_path / "index.db")
    with opened(tmp_path / "index.db") as index:
        index._writer._db.execute("BEGIN IMMEDIATE")
        index._writer._db.execute("DELETE FROM node WHERE ino > 1")
        assert pack(tmp_path / "index.db", tmp_path / "snap")["files"] == len(FILES) + 1
        index._writer._db.execute("ROLLBACK")


async def test_an_index_that_never_knew_the_whole_bucket_is_not_exported(tmp_path: Path) -> None:
    await make_index(tmp_path / "index.db", complete=False)
    with pytest.raises(SnapshotError, match="not completely listed yet"):
        pack(tmp_path / "index.db", tmp_path / "snap")
    with opened(tmp_path / "index.db") as index:
        await index.set_meta("unfinished import", "")  # once it did
    assert pack(tmp_path / "index.db", tmp_path / "snap")["files"]


@pytest.mark.parametrize("place", ["missing/snap", "folder"])
async def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path, place: str) -> None:
    await make_index(tmp_path / "index.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SnapshotError, match="cannot write"):
        pack(tmp_path / "index.db", tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["folder", "index.db"]


@pytest.mark.parametrize(("kept_ns", "installed"), [(LISTED_NS - 1, True), (LISTED_NS, False), (LISTED_NS + 1, False)])
async def test_only_a_newer_one_replaces_what_is_there(tmp_path: Path, kept_ns: int, installed: bool) -> None:
    await make_index(tmp_path / "index.db")
    pack(tmp_path / "index.db", tmp_path / "snap")
    await make_index(tmp_path / "kept.db", listed_ns=kept_ns)
    assert install(tmp_path / "snap", tmp_path / "kept.db", IDENTITY, name="snap") is installed


async def test_one_that_is_damaged_or_incomplete_is_replaced(tmp_path: Path) -> None:
    await make_index(tmp_path / "index.db")
    pack(tmp_path / "index.db", tmp_path / "snap")
    (tmp_path / "damaged.db").write_bytes(b"no database")
    assert install(tmp_path / "snap", tmp_path / "damaged.db", IDENTITY, name="snap")
    await make_index(tmp_path / "part.db", listed_ns=2 * LISTED_NS, complete=False)
    assert install(tmp_path / "snap", tmp_path / "part.db", IDENTITY, name="snap")


async def test_a_clock_that_was_ahead_makes_no_lease_longer(tmp_path: Path) -> None:
    ahead_ns = time.time_ns() + 3600 * 10**9
    await make_index(tmp_path / "index.db", listed_ns=ahead_ns)
    pack(tmp_path / "index.db", tmp_path / "snap")
    install(tmp_path / "snap", tmp_path / "fresh.db", IDENTITY, name="snap")
    with opened(tmp_path / "fresh.db") as index:
        root, file = index.node(ROOT_INO), index.child(ROOT_INO, "file-001")
        assert root is not None
        assert file is not None
        assert (root.listed_ns or 0) < ahead_ns - 1000 * 10**9
        assert file.checked_ns == 0


def test_what_a_killed_daemon_left_is_swept(tmp_path: Path) -> None:
    for name in (".index.db.snapshot-x", ".other.db.snapshot-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "copy.db").touch()
    sweep(tmp_path / "index.db")
    assert os.listdir(tmp_path) == [".other.db.snapshot-x"]


# -- what is refused ------------------------------------------------------------------------------------------


async def made(folder: Path) -> Path:
    await make_index(folder / "source.db")
    pack(folder / "source.db", folder / "snap")
    return folder / "snap"


def refuses(snapshot: Path, folder: Path, reason: str, identity: dict[str, str] | None = None) -> None:
    """Installing says `reason` in one line, and changes nothing."""
    folder.mkdir(exist_ok=True)
    (folder / "kept.db").write_bytes(b"what was there")
    with pytest.raises(SnapshotError, match=reason) as caught:
        install(snapshot, folder / "kept.db", identity or IDENTITY, name=str(snapshot))
    assert "\n" not in str(caught.value)
    assert str(snapshot) in str(caught.value)
    assert os.listdir(folder) == ["kept.db"]
    assert (folder / "kept.db").read_bytes() == b"what was there"


async def test_modes_go_along_but_for_what_gives_away_rights(tmp_path: Path) -> None:
    await make_index(tmp_path / "source.db")
    with opened(tmp_path / "source.db") as index:
        node = index.child(ROOT_INO, "file-001")
        assert node is not None
        await index.describe(node.ino, Posix(mode=0o106755, uid=0, gid=7))
    pack(tmp_path / "source.db", tmp_path / "snap")
    (tmp_path / "home").mkdir()
    assert install(tmp_path / "snap", tmp_path / "home/index.db", IDENTITY, name="snap")
    with opened(tmp_path / "home/index.db") as index:
        node = index.child(ROOT_INO, "file-001")
        assert node is not None
        assert (node.mode, node.uid, node.gid) == (0o100755, 0, 7)


async def test_another_place_is_refused(tmp_path: Path) -> None:
    snapshot = await made(tmp_path)
    for other in ({"bucket": "other"}, {"prefix": ""}, {"endpoint": ""}):
        reason = "it is of bucket/a on http://server, not of "
        refuses(snapshot, tmp_path / "home", reason, IDENTITY | other)


async def test_files_that_are_no_snapshot_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    refuses(file, tmp_path / "home", "No such file")
    refuses(tmp_path, tmp_path / "home", "Is a directory")
    for content, reason in [
        (b"", "not a snapshot of lazyfs"),
        (b"hello", "not a snapshot of lazyfs"),
        (gzip.compress(b""), "damaged|not an index|version 0"),
        (gzip.compress(b"hello" * 1000), "not a database"),
    ]:
        file.write_bytes(content)
        refuses(file, tmp_path / "home", reason)


async def test_a_bomb_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    bomb.write_bytes(gzip.compress(bytes(MIN_LIMIT * 50)))
    assert bomb.stat().st_size * MAX_RATIO + MIN_LIMIT < MIN_LIMIT * 50
    refuses(bomb, tmp_path / "home", "unpacks to more than any snapshot would")


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("PRAGMA user_version = 99", "version 99, not 3"),
        ("CREATE TRIGGER t AFTER INSERT ON node BEGIN DELETE FROM node; END", "not an index of lazyfs"),
        ("DROP TABLE total", "not an index of lazyfs"),
        ("DELETE FROM meta", "does not say of which bucket"),
        ("UPDATE meta SET value = 'rubbish' WHERE key = 'identity'", "damaged"),
        ("UPDATE meta SET value = '[1]' WHERE key = 'identity'", "does not say of which bucket"),
        ("UPDATE total SET files = 0", "rows that no listing makes"),
        ("UPDATE node SET parent = 5 WHERE ino = 1", "rows that no listing makes"),
        ("UPDATE node SET entry = '../' WHERE entry = 'd/'", "rows that no listing makes"),
        ("UPDATE node SET entry = 'a/b' WHERE entry = 'file-001'", "rows that no listing makes"),
        ("UPDATE node SET entry = 'a' || char(0) WHERE entry = 'file-001'", "rows that no listing makes"),
        ("UPDATE node SET size = -1 WHERE entry = 'file-001'", "rows that no listing makes"),
        ("UPDATE node SET mtime_ns = 'x' WHERE entry = 'file-001'", "rows that no listing makes"),
        ("UPDATE node SET mode = 35309 WHERE entry = 'file-001'", "rows that no listing makes"),  # 0104755
        ("UPDATE node SET mode = -1 WHERE entry = 'file-001'", "rows that no listing makes"),
        ("UPDATE node SET mode = 'x' WHERE entry = 'file-001'", "rows that no listing makes"),
        ("UPDATE node SET uid = 4294967295 WHERE entry = 'file-001'", "rows that no listing makes"),
        ("UPDATE node SET gid = 1.5 WHERE entry = 'file-001'", "rows that no listing makes"),
        ("UPDATE node SET etag = '<local>' WHERE entry = 'file-001'", "rows that no listing makes"),
    ],
)
async def test_a_changed_database_is_refused(tmp_path: Path, sql: str, reason: str) -> None:
    snapshot = repacked(await made(tmp_path), tmp_path / "changed", lambda db: db.execute(sql))
    refuses(snapshot, tmp_path / "home", reason)


async def test_a_database_that_is_damaged_inside_is_refused(tmp_path: Path) -> None:
    snapshot = await made(tmp_path)
    plain = bytearray(gzip.decompress(snapshot.read_bytes()))
    plain[4096 + 3 : 4096 + 40] = bytes(37)  # a page's header, under a good checksum
    (tmp_path / "changed").write_bytes(gzip.compress(plain))
    refuses(tmp_path / "changed", tmp_path / "home", "damaged|not an index")


# -- whatever the file holds ----------------------------------------------------------------------------------

FUZZ = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good snapshot."""
    import trio  # noqa: PLC0415 - a fixture is not run under trio

    return trio.run(made, tmp_path_factory.mktemp("good")).read_bytes()


def outcome(content: bytes, folder: Path) -> bytes | None:
    """What a file of `content` unpacks to where it is installed, None where it is refused and has left nothing."""
    snapshot, home = folder / "snap", folder / "home"
    home.mkdir(exist_ok=True)
    snapshot.write_bytes(content)
    try:
        install(snapshot, home / "index.db", IDENTITY, name="snap")
    except SnapshotError:
        assert os.listdir(home) == []
        return None
    assert os.listdir(home) == ["index.db"]
    (home / "index.db").unlink()
    return gzip.decompress(content)


def test_the_good_one_is_installed(good: bytes, tmp_path: Path) -> None:
    assert outcome(good, tmp_path) is not None


@FUZZ
@given(content=st.binary(max_size=3000))
def test_random_bytes_are_never_installed(content: bytes, tmp_path: Path) -> None:
    assert outcome(content, tmp_path) is None
    assert outcome(gzip.compress(content), tmp_path) is None


@FUZZ
@given(data=st.data())
def test_a_snapshot_cut_short_is_never_installed(good: bytes, data: st.DataObject, tmp_path: Path) -> None:
    assert outcome(good[: data.draw(st.integers(0, len(good) - 1))], tmp_path) is None


@FUZZ
@given(data=st.data())
def test_flipped_bytes_install_the_very_same_or_nothing(good: bytes, data: st.DataObject, tmp_path: Path) -> None:
    # The CRC does not cover the header's time and the filling of the last byte: what is installed is the same.
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    assert outcome(bytes(content), tmp_path) in (None, gzip.decompress(good))


@FUZZ
@given(data=st.data())
def test_damage_under_a_good_checksum_never_ends_in_anything_else(
    good: bytes, data: st.DataObject, tmp_path: Path
) -> None:
    plain = bytearray(gzip.decompress(good))
    for _ in range(data.draw(st.integers(1, 20))):
        plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
    outcome(gzip.compress(bytes(plain), 1), tmp_path)  # refused, or an index that SQLite finds sound
