"""Modes, owners and times: what stat tells of them, what the bucket gets to know, and what that costs."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lazyfs.core import parts
from lazyfs.core.errors import (
    AccessDeniedError,
    BadLinkError,
    ExistsError,
    NameTooLongError,
    PreconditionFailedError,
    ReadOnlyError,
    StaleError,
    StoreError,
    UsageError,
)
from lazyfs.core.posix import Posix, from_metadata
from lazyfs.core.types import ROOT_INO, Attributes, Changes, Kind, Range
from lazyfs.vfs import modes
from tests.vfs.building import Clock, Knobs, Mount, Mounting, SmallPages, mounted, mounting

PART = Knobs().part
MADE = Posix(mode=0o640, uid=7, gid=8)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> SmallPages:
    return SmallPages(clock=clock, min_part_size=1)


@pytest.fixture
def mount(store: SmallPages, clock: Clock, tmp_path: Path) -> Mounting:
    return mounting(store, clock, tmp_path)


def looks(attributes: Attributes) -> tuple[int, int, int]:
    return stat.S_IMODE(attributes.mode), attributes.uid, attributes.gid


def said(store: SmallPages, key: str) -> Posix:
    """What the bucket knows of a file."""
    return from_metadata(store._objects[key].metadata)


def asked(store: SmallPages) -> list[str]:
    return [request.verb for request in store.requests]


async def made(m: Mount, name: str, data: bytes, posix: Posix = MADE) -> int:
    """A new file, written and closed."""
    fh, attributes = await m.fs.create(ROOT_INO, name, 1, posix)
    await m.fs.write(attributes.ino, fh, 0, data)
    await m.fs.flush(attributes.ino, fh)
    await m.fs.release(attributes.ino, fh)
    return attributes.ino


@pytest.mark.parametrize("size", [0, 1, PART, 3 * PART + 1])
async def test_a_new_file_is_its_makers_here_and_in_the_bucket(
    mount: Mounting, store: SmallPages, clock: Clock, size: int
) -> None:
    async with mount() as m:
        ino = await made(m, "f", bytes(size))
        assert looks(await m.fs.getattr(ino)) == looks(await m.lookup("f")) == (0o640, 7, 8)
    assert said(store, "f") == Posix(mode=0o100640, uid=7, gid=8, mtime_ns=clock.now_ns)
    assert "set_metadata" not in asked(store)
    async with mount() as m:
        assert looks(await m.lookup("f")) == (0o640, 7, 8), "the index outlives the mount"


async def test_what_nobody_has_set_looks_as_the_mount_says(mount: Mounting, store: SmallPages) -> None:
    store.put_now("f", b"1", metadata=MADE.to_metadata())
    store.put_now("d/f", b"1")
    async with mount(uid=1, gid=2, file_mode=0o604, dir_mode=0o705) as m:
        assert looks(await m.lookup("f")) == (0o604, 1, 2)
        assert looks(await m.lookup("d")) == (0o705, 1, 2)
        assert "head" not in asked(store)
    async with mount(uid=3, gid=4, file_mode=0o644) as m:
        assert looks(await m.lookup("f")) == (0o644, 3, 4)


async def test_a_new_directory_is_its_makers(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        d = await m.fs.make_directory(ROOT_INO, "d", Posix(mode=0o2750, uid=7, gid=8))
        assert looks(d) == (0o2750, 7, 8)
        assert said(store, "d/") == Posix(mode=0o40750, uid=7, gid=8)
        fh, f = await m.fs.create(d.ino, "f", 1, Posix(mode=0o600, uid=9, gid=9))
        await m.fs.release(f.ino, fh)
        assert looks(f) == (0o600, 9, 8), "in a directory with setgid the group stays"
        assert looks(await m.fs.make_directory(d.ino, "e", Posix(mode=0o700, uid=9, gid=9))) == (0o2700, 9, 8)


@pytest.mark.parametrize("size", [1, 3 * PART + 1])
async def test_chmod_and_chown_of_what_is_not_finished_go_up_with_it(
    mount: Mounting, store: SmallPages, size: int
) -> None:
    """Of an upload of several parts that has begun they cannot: then it is copied onto itself at the end."""
    async with mount() as m:
        fh, f = await m.fs.create(ROOT_INO, "f", 1, Posix(mode=0o600, uid=7, gid=8))
        await m.fs.write(f.ino, fh, 0, bytes(size))
        assert looks(await m.fs.setattr(f.ino, Changes(mode=0o755))) == (0o755, 7, 8)
        assert looks(await m.fs.setattr(f.ino, Changes(uid=1, gid=2))) == (0o755, 1, 2)
        assert (await m.fs.setattr(f.ino, Changes(mtime_ns=123))).mtime_ns == 123
        await m.fs.flush(f.ino, fh)
        await m.fs.release(f.ino, fh)
        after = await m.lookup("f")
        assert (looks(after), after.mtime_ns) == ((0o755, 1, 2), 123)
        assert said(store, "f") == Posix(mode=0o100755, uid=1, gid=2, mtime_ns=123)
        assert asked(store).count("set_metadata") == (size > PART)
        assert await m.read("f") == bytes(size)


@pytest.mark.parametrize("size", [1, 3 * PART + 1])
async def test_chmod_of_a_stored_object_is_a_copy_onto_itself(mount: Mounting, store: SmallPages, size: int) -> None:
    async with mount() as m:
        ino = await made(m, "f", bytes(range(size)))
        theirs = dict(store._objects["f"].metadata) | {"theirs": "1"}
        store._objects["f"].metadata.update(theirs)  # type: ignore[attr-defined]
        reader, fh = await m.open("f")
        assert bytes(await m.fs.read(reader, fh, Range(0, 99))) == bytes(range(size))
        store.requests.clear()
        changed = await m.fs.setattr(ino, Changes(mode=0o4511))
        assert (changed.ino, looks(changed)) == (ino, (0o4511, 7, 8)), "what is set here is told, setuid too"
        assert asked(store) == ["set_metadata"]
        assert said(store, "f").mode == 0o100511
        assert store._objects["f"].metadata["theirs"] == "1"
        assert (await m.lookup("f")).ino == ino
        assert bytes(await m.fs.read(reader, fh, Range(0, 99))) == bytes(range(size))
        await m.fs.release(reader, fh)
        assert await m.read("f") == bytes(range(size))
        assert "get" not in asked(store), "what is cached stays, though the ETag of several parts changes"
        await m.namespace.refresh()
        assert looks(await m.lookup("f")) == (0o4511, 7, 8)
        assert (await m.lookup("f")).ino == ino


async def test_who_writes_on_after_a_chmod_writes_the_same_file(
    mount: Mounting, store: SmallPages, tmp_path: Path
) -> None:
    async with mount(spool=tmp_path / "spool", disk=tmp_path / "disk") as m:
        fh, f = await m.fs.create(ROOT_INO, "f", 1, MADE)
        await m.fs.write(f.ino, fh, 0, b"1" * (PART + 1))
        await m.fs.fsync(f.ino, fh)
        await m.fs.setattr(f.ino, Changes(mode=0o755))
        await m.fs.setattr(f.ino, Changes(size=3))
        await m.fs.write(f.ino, fh, 1, b"22")
        await m.fs.flush(f.ino, fh)
        await m.fs.release(f.ino, fh)
        assert store.body("f") == b"122"
        assert said(store, "f").mode == 0o100755


async def test_a_rewrite_keeps_mode_and_owner(mount: Mounting, store: SmallPages, clock: Clock) -> None:
    store.put_now("theirs", b"1")
    async with mount() as m:
        ino = await made(m, "ours", b"1")
        clock.advance(5)
        await m.write("ours", b"22")
        await m.write("theirs", b"22")
        assert looks(await m.fs.getattr(ino)) == (0o640, 7, 8)
    assert said(store, "ours") == Posix(mode=0o100640, uid=7, gid=8, mtime_ns=clock.now_ns)
    assert said(store, "theirs") == Posix(mode=0o100644, uid=1000, gid=1000, mtime_ns=clock.now_ns)


async def test_what_changes_nothing_asks_nothing(mount: Mounting, store: SmallPages) -> None:
    store.put_now("f", b"1")
    async with mount() as m:
        now = await m.lookup("f")
        store.requests.clear()
        for changes in (Changes(), Changes(mode=now.mode), Changes(mode=0o644), Changes(uid=now.uid, gid=now.gid)):
            assert await m.fs.setattr(now.ino, changes) == now
        assert asked(store) == []


async def test_a_time_alone_is_kept_here_and_goes_along_with_the_next_copy(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        ino = await made(m, "f", b"1")
        store.requests.clear()
        assert (await m.fs.setattr(ino, Changes(mtime_ns=5))).mtime_ns == 5
        assert asked(store) == []
        await m.fs.setattr(ino, Changes(mode=0o600))
        assert said(store, "f").mtime_ns == 5
    async with mount() as m:
        assert (await m.lookup("f")).mtime_ns == 5


async def test_chmod_of_a_directory_is_told_its_marker(mount: Mounting, store: SmallPages) -> None:
    store.put_now("full/", b"content", metadata={"theirs": "1"})
    store.put_now("empty/", b"", metadata={"theirs": "1"})
    store.put_now("none/f", b"1")
    async with mount() as m:
        for name in ("full", "empty", "none"):
            d = await m.lookup(name)
            assert looks(await m.fs.setattr(d.ino, Changes(mode=0o1700, uid=3))) == (0o1700, 3, 1000)
            assert (await m.fs.setattr(d.ino, Changes(mtime_ns=77))).mtime_ns == 77
            assert said(store, name + "/") == Posix(mode=0o41700, uid=3, gid=1000)
            assert store._objects[name + "/"].metadata.get("theirs") == (None if name == "none" else "1")
        assert store.body("full/") == b"content"
        await m.namespace.refresh()
        assert looks(await m.lookup("none")) == (0o1700, 3, 1000)
    async with mount() as m:
        assert looks(await m.lookup("none")) == (0o1700, 3, 1000)
        assert (await m.lookup("none")).mtime_ns == 77


async def test_the_root_can_be_changed_here(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        assert looks(await m.fs.setattr(ROOT_INO, Changes(mode=0o711, mtime_ns=5))) == (0o711, 1000, 1000)
        assert (await m.fs.getattr(ROOT_INO)).mtime_ns == 5
        assert store.keys() == []


async def test_the_root_of_a_prefix_has_a_marker(store: SmallPages, clock: Clock, tmp_path: Path) -> None:
    store.put_now("data/f", b"1")
    async with mounted(store, tmp_path / "index.db", clock=clock, root="data/") as m:
        await m.fs.setattr(ROOT_INO, Changes(mode=0o711))
        assert said(store, "data/").mode == 0o40711


async def test_a_rename_keeps_it_all(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        d = await m.fs.make_directory(ROOT_INO, "d", Posix(mode=0o750, uid=7, gid=8))
        await made(m, "f", b"1" * (PART + 1))
        await m.fs.rename(ROOT_INO, "f", d.ino, "g", replace=True)
        assert looks(await m.lookup("d/g")) == (0o640, 7, 8)
        await m.fs.rename(ROOT_INO, "d", ROOT_INO, "e", replace=True)
        assert (looks(await m.lookup("e")), looks(await m.lookup("e/g"))) == ((0o750, 7, 8), (0o640, 7, 8))
    assert (said(store, "e/").mode, said(store, "e/g").mode) == (0o40750, 0o100640)


async def test_what_somebody_else_has_put_there_is_theirs(mount: Mounting, store: SmallPages, clock: Clock) -> None:
    async with mount() as m:
        ino = await made(m, "f", b"1")
        store.put_now("f", b"22")
        with pytest.raises(StaleError):
            await m.fs.setattr(ino, Changes(mode=0o600))
        await m.settle()
        assert looks(await m.lookup("f")) == (0o644, 1000, 1000)
        assert dict(store._objects["f"].metadata) == {}


async def test_a_deleted_file_that_is_open_can_be_changed(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        await made(m, "f", b"1")
        ino, fh = await m.open("f")
        await m.fs.unlink(ROOT_INO, "f")
        store.requests.clear()
        assert looks(await m.fs.setattr(ino, Changes(mode=0o600, uid=1, gid=1))) == (0o600, 1, 1)
        assert (await m.fs.setattr(ino, Changes(mtime_ns=1))).mtime_ns == 1
        assert asked(store) == []
        await m.fs.release(ino, fh)


async def test_a_refused_copy_is_told_and_changes_nothing(mount: Mounting, store: SmallPages) -> None:
    def refuse(when: str, verb: str, key: str) -> None:
        if verb == "set_metadata":
            raise StoreError("no")

    async with mount() as m:
        ino = await made(m, "f", b"1")
        store.hook = refuse
        with pytest.raises(StoreError, match="no"):
            await m.fs.setattr(ino, Changes(mode=0o600))
        assert looks(await m.fs.getattr(ino)) == (0o640, 7, 8)


@pytest.mark.expect_warnings
@pytest.mark.parametrize("error", [StoreError("no"), PreconditionFailedError("no")])
async def test_what_is_uploaded_is_not_lost_with_its_mode(
    mount: Mounting, store: SmallPages, error: StoreError, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(when: str, verb: str, key: str) -> None:
        if verb == "set_metadata":
            raise error

    store.hook = refuse
    async with mount() as m:
        fh, f = await m.fs.create(ROOT_INO, "f", 1, MADE)
        await m.fs.write(f.ino, fh, 0, bytes(3 * PART))
        await m.fs.setattr(f.ino, Changes(mode=0o600))
        await m.fs.flush(f.ino, fh)
        await m.fs.release(f.ino, fh)
        assert looks(await m.lookup("f")) == (0o600, 7, 8)
        assert await m.read("f") == bytes(3 * PART)
    assert "mode and owner of 'f' are known here only: no" in caplog.text


async def test_what_is_too_large_to_be_copied_is_changed_here_only(
    mount: Mounting, store: SmallPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "MAX_COPY_BYTES", 3)
    async with mount() as m:
        ino = await made(m, "f", b"1234")
        assert looks(await m.fs.setattr(ino, Changes(mode=0o600))) == (0o600, 7, 8)
        assert said(store, "f").mode == 0o100640
    assert parts.MAX_COPY_BYTES == 5 * 2**30


async def test_looking_costs_nothing_more_than_before(mount: Mounting, store: SmallPages) -> None:
    """Neither requests nor queries of the index."""
    for number in range(40):
        store.put_now(f"d/{number:02}", b"1")
    async with mount() as m:
        await m.names("d")
        store.requests.clear()
        queries: list[str] = []
        m.index._read.set_trace_callback(queries.append)
        await m.fs.lookup((await m.lookup("d")).ino, "07")
        count = len(queries)
        await m.names("d")
        m.index._read.set_trace_callback(None)
        assert asked(store) == []
        assert count <= 8
        assert len(queries) - count <= 20, "a batch of rows a query, not a query a row"


# -- what objects say of themselves ---------------------------------------------------------------------------------


async def test_an_object_is_asked_once_for_each_version(mount: Mounting, store: SmallPages) -> None:
    store.put_now("f", b"1", metadata=Posix(mode=0o106755, uid=7, gid=8, mtime_ns=9).to_metadata())
    store.put_now("s3fs", b"1", metadata={"mode": "33216", "uid": "3", "mtime": "5"})
    store.put_now("nothing", b"1", metadata={"other": "1", "file-permissions": "rubbish"})
    store.put_now("pipe", b"1", metadata={"file-permissions": "0010600"})
    async with mount(asks_modes=True) as m:
        for _ in range(2):
            f = await m.lookup("f")
            assert (looks(f), f.mtime_ns) == ((0o755, 7, 8), 9), "nobody becomes root by what a bucket says"
            assert looks(await m.lookup("s3fs")) == (0o700, 3, 1000)
            assert looks(await m.lookup("nothing")) == (0o644, 1000, 1000)
            assert (await m.lookup("pipe")).mode == 0o100600
        assert asked(store) == ["head"] * 4
    async with mount(asks_modes=True) as m:
        assert looks(await m.lookup("f")) == (0o755, 7, 8)
        assert looks(await m.lookup("nothing")) == (0o644, 1000, 1000)
        assert asked(store) == []
        store.put_now("f", b"22", metadata=Posix(mode=0o100600).to_metadata())
        await m.namespace.refresh()
        assert looks(await m.lookup("f")) == (0o600, 1000, 1000)
        assert asked(store).count("head") == 1


async def test_opening_asks_too(mount: Mounting, store: SmallPages) -> None:
    ino_of = {}
    store.put_now("f", b"1", metadata=MADE.to_metadata())
    async with mount() as m:
        ino_of["f"] = (await m.lookup("f")).ino
    async with mount(asks_modes=True) as m:
        fh = await m.fs.open(ino_of["f"], 0, 1)
        assert looks(await m.fs.getattr(ino_of["f"])) == (0o640, 7, 8)
        assert asked(store) == ["head"]
        await m.fs.release(ino_of["f"], fh)


async def test_reading_a_directory_asks_nothing_and_promises_nothing(mount: Mounting, store: SmallPages) -> None:
    """`ls` stays cheap; the kernel comes again for whom somebody looks at."""
    store.put_now("f", b"1", metadata=MADE.to_metadata())
    async with mount(asks_modes=True) as m:
        fh = await m.fs.open_directory(ROOT_INO)
        [(_, told, _)] = await m.entries(fh)
        assert (looks(told), told.timeout_s) == ((0o644, 1000, 1000), 0.0)
        assert asked(store) == []
        await m.lookup("f")
        [(_, told, _)] = await m.entries(fh)
        assert looks(told) == (0o640, 7, 8)
        assert told.timeout_s > 0
        m.fs.close_directory(fh)


async def test_directories_are_asked_by_their_marker(mount: Mounting, store: SmallPages) -> None:
    store.put_now("d/", b"", metadata=Posix(mode=0o42770, uid=7).to_metadata())
    store.put_now("d/f", b"1")
    store.put_now("none/f", b"1")
    store.put_now("odd/", b"x", metadata=Posix(mode=0o120777).to_metadata())
    async with mount(asks_modes=True) as m:
        for _ in range(2):
            assert looks(await m.lookup("d")) == (0o770, 7, 1000)
            assert looks(await m.lookup("none")) == (0o755, 1000, 1000)
            assert (await m.lookup("odd")).mode == 0o40777
        assert asked(store) == ["head"] * 3


async def test_what_we_made_is_not_asked_for(mount: Mounting, store: SmallPages) -> None:
    async with mount(asks_modes=True) as m:
        await made(m, "f", b"1")
        await m.write("g", b"1")
        await m.fs.make_directory(ROOT_INO, "d")
        store.requests.clear()
        assert looks(await m.lookup("f")) == (0o640, 7, 8)
        await m.lookup("g")
        await m.lookup("d")
        assert asked(store) == []


async def test_an_object_that_changes_while_it_is_asked(mount: Mounting, store: SmallPages) -> None:
    store.put_now("f", b"1", metadata=MADE.to_metadata())
    async with mount(asks_modes=True) as m:
        store.put_now("f", b"22", metadata=Posix(mode=0o100600).to_metadata())
        assert (await m.lookup("f")).timeout_s == 0
        await m.settle()
        now = await m.lookup("f")
        assert (looks(now), now.size) == ((0o600, 1000, 1000), 2)
        await m.write("g", b"1")
        store.delete_now("f")
        await m.namespace.describe(now.ino, Posix(mode=0))
        assert looks(await m.lookup("f")) == (0o644, 1000, 1000)


async def test_an_object_that_may_not_be_asked_looks_as_the_mount_says(mount: Mounting, store: SmallPages) -> None:
    error: list[StoreError] = [AccessDeniedError("no")]

    def refuse(when: str, verb: str, key: str) -> None:
        if verb == "head" and error:
            raise error[0]

    store.put_now("f", b"1", metadata=MADE.to_metadata())
    store.put_now("g", b"1", metadata=MADE.to_metadata())
    store.hook = refuse
    async with mount(asks_modes=True) as m:
        assert looks(await m.lookup("f")) == (0o644, 1000, 1000)
        error[0] = StoreError("ill")
        with pytest.raises(StoreError, match="ill"):
            await m.lookup("g")
        error.clear()
        assert looks(await m.lookup("g")) == (0o640, 7, 8)


# -- symbolic links -------------------------------------------------------------------------------------------------


async def test_a_link_is_an_object_that_holds_its_target(mount: Mounting, store: SmallPages, clock: Clock) -> None:
    target = b"../some where/\xff" * 5
    async with mount() as m:
        store.requests.clear()
        link = await m.fs.make_link(ROOT_INO, "link", target, Posix(mode=0, uid=7, gid=8))
        assert asked(store) == ["put"]
        assert (link.kind, link.mode, link.size, link.mtime_ns) == (Kind.SYMLINK, 0o120777, 75, clock.now_ns)
        assert await m.fs.read_link(link.ino) == target
        assert "get" not in asked(store)
        assert store.body("link") == target
        assert said(store, "link") == Posix(mode=0o120777, uid=7, gid=8, mtime_ns=clock.now_ns)
        assert looks(await m.fs.setattr(link.ino, Changes(uid=1, mtime_ns=5))) == (0o777, 1, 8)
        assert said(store, "link") == Posix(mode=0o120777, uid=1, gid=8, mtime_ns=5)
        await m.namespace.refresh()
        assert (await m.lookup("link")).ino == link.ino
    async with mount() as m:
        link = await m.lookup("link")
        assert link.kind is Kind.SYMLINK
        assert await m.fs.read_link(link.ino) == target
        store.put_now("link", b"a file of others")
        await m.namespace.refresh()
        assert (await m.lookup("link")).kind is Kind.FILE
        await m.fs.unlink(ROOT_INO, "link")
        assert store.keys() == []


async def test_a_link_that_cannot_be_made(mount: Mounting, store: SmallPages) -> None:
    store.put_now("f", b"1")
    async with mount() as m:
        with pytest.raises(ExistsError):
            await m.fs.make_link(ROOT_INO, "f", b"x")
        with pytest.raises(NameTooLongError):
            await m.fs.make_link(ROOT_INO, "long", b"x" * 4096)
        store.put_now("theirs", b"1")
        with pytest.raises(ExistsError):
            await m.fs.make_link(ROOT_INO, "theirs", b"x")
        await m.settle()
        assert store.body("theirs") == b"1"
        assert (await m.lookup("theirs")).kind is Kind.FILE
        with pytest.raises(UsageError):
            await m.fs.read_link((await m.lookup("f")).ino)
    async with mount(read_only=True) as m:
        with pytest.raises(ReadOnlyError):
            await m.fs.make_link(ROOT_INO, "link", b"x")


async def test_what_cannot_be_a_target_is_not_told(mount: Mounting, store: SmallPages) -> None:
    store.put_now("nul", b"a\0b")
    store.put_now("huge", b"x" * 5000)
    store.put_now("empty", b"")
    async with mount() as m:
        for name in ("nul", "huge", "empty"):
            ino = (await m.lookup(name)).ino
            await m.namespace.describe(ino, Posix(mode=0o120777))
            with pytest.raises(BadLinkError):
                await m.fs.read_link(ino)


async def test_links_of_others_are_found_where_objects_are_asked(mount: Mounting, store: SmallPages) -> None:
    link = Posix(mode=0o120777).to_metadata()
    store.put_now("link", b"f", metadata=link)
    store.put_now("empty", b"", metadata=link)
    store.put_now("huge", b"x" * 4096, metadata=link)
    async with mount(asks_modes=True) as m:
        found = await m.lookup("link")
        assert (found.kind, found.mode) == (Kind.SYMLINK, 0o120777)
        assert await m.fs.read_link(found.ino) == b"f"
        assert (await m.lookup("empty")).mode == 0o100777, "what no target can be is no link"
        assert (await m.lookup("huge")).mode == 0o100777
