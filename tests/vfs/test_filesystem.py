"""The verbs, one rule at a time, without a kernel; requests are counted where the number is the promise."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from lazyfs.core.errors import (
    ArchivedError,
    BadHandleError,
    BadNameError,
    ExistsError,
    IsDirectoryError,
    NameTooLongError,
    NoEntryError,
    NoRoomError,
    NotDirectoryError,
    NotEmptyError,
    NotPermittedError,
    NotSupportedError,
    OutOfOrderError,
    PreconditionFailedError,
    ReadOnlyError,
    StaleError,
    StaleInodeError,
    TransientStoreError,
    UsageError,
)
from lazyfs.core.types import ROOT_INO, Capabilities, Changes, Kind, Range
from lazyfs.vfs import directories
from lazyfs.vfs.lost import LOST
from tests.vfs.building import Clock, Knobs, Mount, Mounting, SmallPages, mounted, mounting

PART = Knobs().part


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> SmallPages:
    return SmallPages(clock=clock, min_part_size=1)


@pytest.fixture
def mount(store: SmallPages, clock: Clock, tmp_path: Path) -> Mounting:
    return mounting(store, clock, tmp_path)


def asked(store: SmallPages) -> list[tuple[str, str]]:
    """The requests since this was last called."""
    requests = [(request.verb, request.key) for request in store.requests]
    store.requests.clear()
    return requests


def bodies(store: SmallPages) -> dict[str, bytes]:
    """The whole bucket."""
    keys = store.keys()
    return {key: store.body(key) for key in keys}


def fail_writes(moment: str, verb: str, key: str) -> None:
    """A hook under which nothing can be written."""
    if moment == "before" and verb not in ("list_page", "head", "get_range"):
        raise TransientStoreError("no")


async def close(mount: Mount, ino: int, fh: int) -> None:
    """What close(2) of the last descriptor does."""
    try:
        await mount.fs.flush(ino, fh)
    finally:
        await mount.fs.release(ino, fh)


def fail_once(store: SmallPages, when: str, verb: str) -> None:
    """The next such request fails, before or after it took effect."""

    def hook(now: str, what: str, key: str) -> None:
        if (now, what) == (when, verb):
            store.hook = None
            raise TransientStoreError(f"{verb} failed")

    store.hook = hook


# -- asking costs nothing within the lease ---------------------------------------------------------------------


async def test_a_listed_tree_answers_without_a_request(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a/b/c", b"123")
    async with mount() as m:
        for _ in range(3):
            assert (await m.lookup("a/b/c")).size == 3
            assert await m.names("a") == ["b"]
            with pytest.raises(NoEntryError):
                await m.lookup("a/x")
        assert asked(store) == []


async def test_a_small_file_costs_one_get_and_a_second_reading_none(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"0123456789")
    async with mount() as m:
        assert await m.read("a") == b"0123456789"
        assert await m.read("a") == b"0123456789"
        assert asked(store) == [("get", "a")]


async def test_a_new_small_file_costs_one_put(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        await m.write("a", b"x" * PART)
        assert asked(store) == [("put", "a")]
        assert (await m.lookup("a")).size == PART
        assert asked(store) == []


async def test_attributes_are_those_of_the_mount(mount: Mounting, store: SmallPages, clock: Clock) -> None:
    store.put_now("d/a", b"123")
    async with mount(uid=5, gid=6, file_mode=0o640, dir_mode=0o750) as m:
        file, directory = await m.lookup("d/a"), await m.lookup("d")
        assert (file.mode, file.uid, file.gid, file.mtime_ns) == (0o100640, 5, 6, clock.now_ns)
        assert (directory.kind, directory.mode, directory.uid) == (Kind.DIRECTORY, 0o040750, 5)
        clock.advance(3600)
        assert await m.fs.getattr(file.ino) == file._replace(timeout_s=0)
        with pytest.raises(StaleInodeError):
            await m.fs.getattr(4711)


# -- names that are taken, missing or not possible ---------------------------------------------------------------------


async def test_each_wrong_kind_of_name_has_its_error(mount: Mounting, store: SmallPages) -> None:
    for key in ("file", "full/x", "empty/"):
        store.put_now(key, b"1")
    async with mount() as m:
        fs = m.fs
        directory = (await m.lookup("full")).ino
        file = (await m.lookup("file")).ino
        refusals = [
            (ExistsError, errno.EEXIST, lambda: fs.create(ROOT_INO, "file", 1)),
            (ExistsError, errno.EEXIST, lambda: fs.create(ROOT_INO, "full", 1)),
            (ExistsError, errno.EEXIST, lambda: fs.make_directory(ROOT_INO, "full")),
            (ExistsError, errno.EEXIST, lambda: fs.make_directory(ROOT_INO, "file")),
            (NotEmptyError, errno.ENOTEMPTY, lambda: fs.remove_directory(ROOT_INO, "full")),
            (NotDirectoryError, errno.ENOTDIR, lambda: fs.remove_directory(ROOT_INO, "file")),
            (NoEntryError, errno.ENOENT, lambda: fs.remove_directory(ROOT_INO, "none")),
            (IsDirectoryError, errno.EISDIR, lambda: fs.unlink(ROOT_INO, "full")),
            (NoEntryError, errno.ENOENT, lambda: fs.unlink(ROOT_INO, "none")),
            (IsDirectoryError, errno.EISDIR, lambda: fs.open(directory, os.O_RDONLY, 1)),
            (IsDirectoryError, errno.EISDIR, lambda: fs.setattr(directory, Changes(size=0))),
            (NotDirectoryError, errno.ENOTDIR, lambda: fs.lookup(file, "x")),
            (NotDirectoryError, errno.ENOTDIR, lambda: fs.create(file, "x", 1)),
            (NotDirectoryError, errno.ENOTDIR, lambda: fs.open_directory(file)),
            (BadNameError, errno.EILSEQ, lambda: fs.create(ROOT_INO, "a\0b", 1)),
            (NameTooLongError, errno.ENAMETOOLONG, lambda: fs.create(ROOT_INO, "é" * 128, 1)),
            (NameTooLongError, errno.ENAMETOOLONG, lambda: fs.make_directory(ROOT_INO, "x" * 256)),
            (UsageError, errno.EINVAL, lambda: fs.rename(ROOT_INO, "full", directory, "new", replace=True)),
            (NotDirectoryError, errno.ENOTDIR, lambda: fs.rename(ROOT_INO, "full", ROOT_INO, "file", replace=True)),
            (IsDirectoryError, errno.EISDIR, lambda: fs.rename(ROOT_INO, "file", ROOT_INO, "full", replace=True)),
            (ExistsError, errno.EEXIST, lambda: fs.rename(ROOT_INO, "file", directory, "x", replace=False)),
            (NoEntryError, errno.ENOENT, lambda: fs.rename(ROOT_INO, "none", ROOT_INO, "new", replace=True)),
        ]  # fmt: skip
        for error, number, refused in refusals:
            with pytest.raises(error) as raised:
                await refused()
            assert raised.value.errno == number
        assert {verb for verb, _ in asked(store)} <= {"list"}
        assert store.keys() == ["empty/", "file", "full/x"]


async def test_a_key_of_1024_bytes_is_the_longest(mount: Mounting, store: SmallPages) -> None:
    directories = "/".join(["d" * 200] * 5)
    store.put_now(f"{directories}/x", b"")
    async with mount() as m:
        parent = (await m.lookup(directories)).ino
        room = 1024 - len(directories) - 1
        with pytest.raises(NameTooLongError):
            await m.fs.create(parent, "n" * (room + 1), 1)
        await m.write(f"{directories}/{'n' * room}", b"1")


async def test_directories_are_made_and_removed_with_their_marker(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        made = await m.fs.make_directory(ROOT_INO, "d")
        assert store.keys() == ["d/"]
        await m.write("d/a", b"1")
        with pytest.raises(NotEmptyError):
            await m.fs.remove_directory(ROOT_INO, "d")
        await m.fs.unlink(made.ino, "a")
        await m.fs.remove_directory(ROOT_INO, "d")
        assert store.keys() == []
        assert await m.names() == []
        with pytest.raises(NoEntryError):
            await m.lookup("d")


async def test_a_file_shows_again_when_the_directory_that_hid_it_goes(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"file")
    store.put_now("a/", b"")
    async with mount() as m:
        assert (await m.lookup("a")).kind is Kind.DIRECTORY
        await m.fs.remove_directory(ROOT_INO, "a")
        assert await m.names() == ["a"]
        assert await m.read("a") == b"file"


# -- what the mount forbids ---------------------------------------------------------------------


async def test_a_read_only_mount_refuses_every_change(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"1")
    store.put_now("d/", b"")
    async with mount(read_only=True) as m:
        ino, fs = (await m.lookup("a")).ino, m.fs
        for refused in (
            lambda: fs.create(ROOT_INO, "b", 1),
            lambda: fs.make_directory(ROOT_INO, "b"),
            lambda: fs.remove_directory(ROOT_INO, "d"),
            lambda: fs.unlink(ROOT_INO, "a"),
            lambda: fs.rename(ROOT_INO, "a", ROOT_INO, "b", replace=True),
            lambda: fs.open(ino, os.O_RDWR, 1),
            lambda: fs.open(ino, os.O_WRONLY | os.O_TRUNC, 1),
            lambda: fs.setattr(ino, Changes(size=0)),
            lambda: fs.setattr(ino, Changes(mtime_ns=1)),
        ):
            with pytest.raises(ReadOnlyError):
                await refused()
        assert await m.read("a") == b"1"
        assert asked(store) == [("get", "a")]


async def test_no_overwrite_lets_new_files_be_made_and_old_ones_alone(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"1")
    async with mount(no_overwrite=True) as m:
        await m.write("new", b"2")
        ino = (await m.lookup("a")).ino
        for refused in (
            lambda: m.fs.open(ino, os.O_WRONLY, 1),
            lambda: m.fs.setattr(ino, Changes(size=0)),
            lambda: m.fs.rename(ROOT_INO, "new", ROOT_INO, "a", replace=True),
        ):
            with pytest.raises(NotPermittedError):
                await refused()
        await m.fs.rename(ROOT_INO, "new", ROOT_INO, "newer", replace=True)
        assert bodies(store) == {"a": b"1", "newer": b"2"}


async def test_no_delete_refuses_unlink_and_rmdir(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"1")
    store.put_now("d/", b"")
    async with mount(no_delete=True) as m:
        with pytest.raises(NotPermittedError):
            await m.fs.unlink(ROOT_INO, "a")
        with pytest.raises(NotPermittedError):
            await m.fs.remove_directory(ROOT_INO, "d")
        assert store.keys() == ["a", "d/"]
        await m.write("a", b"2")


@pytest.mark.expect_warnings
async def test_an_archived_object_has_no_mode_and_is_not_opened(mount: Mounting, store: SmallPages) -> None:
    for storage_class in ("GLACIER", "DEEP_ARCHIVE", "GLACIER_IR"):
        store.put_now(storage_class, b"1")
        store._objects[storage_class] = replace(store._objects[storage_class], storage_class=storage_class)
    async with mount() as m:
        for name in ("GLACIER", "DEEP_ARCHIVE"):
            attributes = await m.lookup(name)
            assert attributes.mode == 0o100000
            with pytest.raises(ArchivedError) as raised:
                await m.fs.open(attributes.ino, os.O_RDONLY, 1)
            assert raised.value.errno == errno.EIO
        assert await m.read("GLACIER_IR") == b"1"


# -- writing ---------------------------------------------------------------------


async def test_what_is_being_written_is_seen_at_once_and_appears_in_the_bucket_whole(
    mount: Mounting, store: SmallPages
) -> None:
    async with mount() as m:
        ino, fh = await m.create("a")
        for number in range(5):
            await m.fs.write(ino, fh, number * 10, bytes([number]) * 10)
            assert (await m.lookup("a")).size == (number + 1) * 10
            assert await m.names() == ["a"]
            assert store.keys() == []
        await close(m, ino, fh)
        assert store.body("a") == b"".join(bytes([number]) * 10 for number in range(5))
        assert (await m.lookup("a")).ino == ino


@pytest.mark.parametrize("first", [0, 1, PART - 1, PART, PART + 1, 2 * PART])
@pytest.mark.parametrize("size", [2 * PART, 2 * PART + 1, 5 * PART])
async def test_a_file_grows_from_any_length_to_any_other(
    mount: Mounting, store: SmallPages, first: int, size: int
) -> None:
    """ftruncate of a file of exactly one part went round for ever."""
    async with mount() as m:
        ino, fh = await m.create("a")
        if first:
            await m.fs.write(ino, fh, 0, b"x" * first)
        await m.fs.setattr(ino, Changes(size=size))
        await close(m, ino, fh)
        assert store.body("a") == b"x" * first + bytes(size - first)


async def test_a_file_of_many_parts_can_be_read_back_through_its_handle_once_it_is_committed(
    mount: Mounting, store: SmallPages
) -> None:
    async with mount() as m:
        ino, fh = await m.create("a")
        data = bytes(range(3 * PART))
        await m.fs.write(ino, fh, 0, data)
        with pytest.raises(OutOfOrderError):
            await m.fs.read(ino, fh, Range(0, 4))
        await m.fs.fsync(ino, fh)
        assert bytes(await m.fs.read(ino, fh, Range(0, 1000))) == data
        await close(m, ino, fh)


async def test_a_committed_file_may_be_truncated_and_written_anew_while_it_is_open(
    mount: Mounting, store: SmallPages
) -> None:
    async with mount() as m:
        ino, first = await m.create("a")
        await m.fs.write(ino, first, 0, b"1" * 3 * PART)
        await m.fs.fsync(ino, first)
        _, second = await m.open("a", os.O_WRONLY | os.O_TRUNC)
        await m.fs.write(ino, second, 0, b"2" * 5)
        await close(m, ino, second)
        assert store.body("a") == b"22222"
        await m.fs.setattr(ino, Changes(size=0))
        await close(m, ino, first)
        assert store.body("a") == b""


async def test_flush_waits_for_the_last_descriptor_of_the_process_that_opened_the_file(
    mount: Mounting, store: SmallPages
) -> None:
    open_still = {77}
    async with mount(still_open=lambda pid, ino, name: pid in open_still) as m:
        fh, attributes = await m.fs.create(ROOT_INO, "a", 77)
        await m.fs.write(attributes.ino, fh, 0, b"half")
        await m.fs.flush(attributes.ino, fh)  # a forked child has closed its copy
        assert store.keys() == []
        await m.fs.write(attributes.ino, fh, 4, b"whole")
        open_still.clear()
        await m.fs.flush(attributes.ino, fh)
        assert store.body("a") == b"halfwhole"
        asked(store)
        await m.fs.flush(attributes.ino, fh)
        await m.fs.release(attributes.ino, fh)
        assert asked(store) == []


async def test_fsync_commits_whoever_has_it_open(mount: Mounting, store: SmallPages) -> None:
    async with mount(still_open=lambda *_: True) as m:
        ino, fh = await m.create("a")
        await m.fs.write(ino, fh, 0, b"1")
        await m.fs.fsync(ino, fh)
        assert store.body("a") == b"1"
        await m.fs.release(ino, fh)


async def test_release_finishes_what_no_flush_did(mount: Mounting, store: SmallPages) -> None:
    async with mount(still_open=lambda *_: True) as m:
        ino, fh = await m.create("a")
        await m.fs.write(ino, fh, 0, b"1")
        await m.fs.flush(ino, fh)
        assert store.keys() == []
        await m.fs.release(ino, fh)
        assert store.body("a") == b"1"


async def test_a_handle_for_reading_takes_no_writes_and_a_closed_one_nothing(mount: Mounting) -> None:
    async with mount() as m:
        await m.write("a", b"1")
        ino, fh = await m.open("a")
        with pytest.raises(BadHandleError) as raised:
            await m.fs.write(ino, fh, 0, b"2")
        assert raised.value.errno == errno.EBADF
        await m.fs.release(ino, fh)
        with pytest.raises(BadHandleError):
            await m.fs.read(ino, fh, Range(0, 1))


async def test_a_small_object_is_rewritten_in_place_and_a_large_one_refused(mount: Mounting, store: SmallPages) -> None:
    store.put_now("small", b"0123456789")
    store.put_now("large", b"x" * (PART + 1))
    async with mount() as m:
        ino, fh = await m.open("small", os.O_RDWR)
        await m.fs.write(ino, fh, 3, b"___")
        await m.fs.write(ino, fh, 10, b"appended")
        await close(m, ino, fh)
        assert store.body("small") == b"012___6789appended"
        ino, fh = await m.open("large", os.O_RDWR)
        with pytest.raises(NotSupportedError) as raised:
            await m.fs.write(ino, fh, 0, b"y")
        assert raised.value.errno == errno.EOPNOTSUPP
        await close(m, ino, fh)
        assert store.body("large") == b"x" * (PART + 1)
        asked(store)
        assert (await m.fs.setattr(ino, Changes(size=PART + 1))).size == PART + 1, "no change at all is allowed"
        assert asked(store) == []
        await m.fs.setattr(ino, Changes(size=0))  # anew is always possible
        assert store.body("large") == b""


async def test_truncate_by_name_is_done_when_it_returns(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"0123456789")
    async with mount() as m:
        ino = (await m.lookup("a")).ino
        assert (await m.fs.setattr(ino, Changes(size=4))).size == 4
        assert store.body("a") == b"0123"
        assert (await m.fs.setattr(ino, Changes(size=6))).size == 6
        assert store.body("a") == b"0123\0\0"
        assert (await m.lookup("a")).ino == ino


async def test_the_time_of_a_file_is_kept_here_and_uploads_nothing(
    mount: Mounting, store: SmallPages, clock: Clock
) -> None:
    store.put_now("a", b"1")
    async with mount() as m:
        ino = (await m.lookup("a")).ino
        assert (await m.fs.setattr(ino, Changes(mtime_ns=123))).mtime_ns == 123
        assert (await m.lookup("a")).mtime_ns == 123
        assert asked(store) == []
        clock.advance(59)
        store.put_now("a", b"22")
        await m.fs.setattr(ino, Changes(mtime_ns=124))
        clock.advance(2)
        assert (await m.lookup("a")).size == 2, "a new time is no new lease"


# -- failures ---------------------------------------------------------------------


@pytest.mark.expect_warnings
@pytest.mark.parametrize("verb", ["create_upload", "upload_part", "complete_upload", "put"])
async def test_no_part_of_a_file_is_lost_without_an_error(mount: Mounting, store: SmallPages, verb: str) -> None:
    """A failed create_upload once lost the part that it was for, and close() said that all was well."""
    async with mount() as m:
        ino, fh = await m.create("a")
        fail_once(store, "before", verb)
        errors = 0
        for number in range(1 if verb == "put" else 6):
            try:
                await m.fs.write(ino, fh, number * 10, bytes([number]) * 10)
            except (TransientStoreError, OutOfOrderError):
                errors += 1
        with pytest.raises(TransientStoreError):
            await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        await m.settle()
        assert store.keys() == []
        assert await m.names() == []
        assert store._uploads == {}


@pytest.mark.expect_warnings
async def test_a_file_whose_upload_arrived_though_its_answer_was_lost_is_seen(
    mount: Mounting, store: SmallPages
) -> None:
    async with mount() as m:
        fail_once(store, "after", "put")
        with pytest.raises(TransientStoreError):
            await m.write("a", b"arrived")
        await m.settle()
        assert await m.names() == ["a"]
        assert await m.read("a") == b"arrived"


@pytest.mark.expect_warnings
async def test_a_new_file_never_replaces_one_that_somebody_made_meanwhile(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        ino, fh = await m.create("a")
        await m.fs.write(ino, fh, 0, b"ours")
        store.put_now("a", b"theirs!")
        with pytest.raises(PreconditionFailedError):
            await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        await m.settle()
        assert store.body("a") == b"theirs!"
        assert set(await m.names()) == {"a", LOST}, "who won is seen at once, not after the lease"
        assert await m.read("a") == b"theirs!"
        assert await lost_and_found(m) == [b"ours"]


@pytest.mark.expect_warnings
@pytest.mark.parametrize("theirs", [b"theirs!", None])
async def test_an_overwrite_never_replaces_another_version_than_was_opened(
    mount: Mounting, store: SmallPages, theirs: bytes | None
) -> None:
    store.put_now("a", b"v1")
    async with mount() as m:
        ino, fh = await m.open("a", os.O_WRONLY | os.O_TRUNC)
        await m.fs.write(ino, fh, 0, b"ours")
        if theirs is None:
            store.delete_now("a")
        else:
            store.put_now("a", theirs)
        with pytest.raises(PreconditionFailedError):
            await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        await m.settle()
        if theirs is None:
            assert await m.names() == [LOST]
        else:
            assert await m.read("a") == theirs
        assert await lost_and_found(m) == [b"ours"]


@pytest.mark.expect_warnings
@pytest.mark.parametrize("pattern", ["stream", "changed"])
async def test_what_lost_a_race_is_kept_and_told(tmp_path: Path, store: SmallPages, pattern: str) -> None:
    content = bytes(range(1, 201))
    async with mounted(store, tmp_path / "index", spool=tmp_path / "spool") as m:
        ino, fh = await m.create("a")
        await m.fs.write(ino, fh, 0, content)
        if pattern == "changed":
            await m.fs.write(ino, fh, 5, content[5:7])
        store.put_now("a", b"theirs!")
        with pytest.raises(PreconditionFailedError):
            await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        await m.settle()
        assert await lost_and_found(m) == [content]
        ((key, place),) = m.fs.lost
        assert key == "a"
        assert store.body(place) == content


@pytest.mark.expect_warnings
async def test_what_cannot_be_kept_is_told_to_be_lost(
    mount: Mounting, store: SmallPages, caplog: pytest.LogCaptureFixture
) -> None:
    async with mount() as m:
        ino, fh = await m.create("a")
        await m.fs.write(ino, fh, 0, bytes(200))  # no spool: most of it was sent and can only be withdrawn
        store.put_now("a", b"theirs!")
        with pytest.raises(PreconditionFailedError):
            await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        await m.settle()
        assert not m.fs.lost
        assert "is lost" in caplog.text


async def lost_and_found(m: Mount) -> list[bytes]:
    """What is kept of writers that lost a race."""
    return [await m.read(f"{LOST}/{name}") for name in await m.names(LOST)]


async def test_where_no_condition_is_honoured_the_last_writer_wins(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"v1")
    store.capabilities = Capabilities(conditional_put=False)
    async with mount(conditional_put=False) as m:
        ino, fh = await m.open("a", os.O_WRONLY | os.O_TRUNC)
        await m.fs.write(ino, fh, 0, b"ours")
        store.put_now("a", b"theirs!")
        await m.namespace.refresh()  # the name has another inode now
        await close(m, ino, fh)
        assert store.body("a") == b"ours"
        assert await m.read("a") == b"ours"


@pytest.mark.expect_warnings
async def test_the_second_flush_of_a_failed_file_leaves_its_successor_alone(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        ino, fh = await m.create("a")
        fail_once(store, "before", "put")
        with pytest.raises(TransientStoreError):
            await m.fs.flush(ino, fh)
        await m.settle()
        successor, second = await m.create("a")
        assert successor != ino
        with pytest.raises(TransientStoreError):
            await m.fs.flush(ino, fh)
        assert (await m.lookup("a")).ino == successor
        await m.fs.release(ino, fh)
        await close(m, successor, second)
        assert store.keys() == ["a"]


@pytest.mark.expect_warnings
async def test_abandon_withdraws_what_is_not_finished(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        open_files = []
        for name in ("small", "large"):
            ino, fh = await m.create(name)
            await m.fs.write(ino, fh, 0, b"x" * (PART if name == "small" else 5 * PART))
            open_files.append((ino, fh))
        done = await m.create("done")
        await m.fs.flush(*done)
        assert len(store._uploads) == 1
        await m.fs.abandon()
        assert store._uploads == {}
        for ino, fh in [*open_files, done]:
            await m.fs.release(ino, fh)
        assert store.keys() == ["done"]


# -- names that go while their file is open ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5 * PART])
async def test_a_file_unlinked_while_it_is_written_never_appears(mount: Mounting, store: SmallPages, size: int) -> None:
    async with mount() as m:
        ino, fh = await m.create("a")
        await m.fs.write(ino, fh, 0, b"x" * size)
        await m.fs.unlink(ROOT_INO, "a")
        await m.settle()
        assert store._uploads == {}
        await close(m, ino, fh)
        assert store.keys() == []
        assert await m.names() == []


async def test_a_file_unlinked_while_it_is_open_is_not_brought_back_by_a_write(
    mount: Mounting, store: SmallPages
) -> None:
    store.put_now("a", b"12345")
    store.capabilities = Capabilities(conditional_put=False)
    async with mount(conditional_put=False) as m:
        ino, fh = await m.open("a", os.O_RDWR)
        assert bytes(await m.fs.read(ino, fh, Range(0, 5))) == b"12345"
        await m.fs.unlink(ROOT_INO, "a")
        assert bytes(await m.fs.read(ino, fh, Range(0, 5))) == b"12345", "what is resident stays readable"
        await m.fs.write(ino, fh, 0, b"_")
        await m.fs.setattr(ino, Changes(mtime_ns=5))
        assert (await m.fs.getattr(ino)).mtime_ns == 5
        await close(m, ino, fh)
        assert store.keys() == []
        assert await m.names() == []


async def test_what_is_written_to_a_file_that_has_no_name_leaves_no_upload(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"12345")
    async with mount() as m:
        ino, fh = await m.open("a", os.O_RDWR)
        assert bytes(await m.fs.read(ino, fh, Range(0, 5))) == b"12345"
        await m.fs.unlink(ROOT_INO, "a")
        with pytest.raises(NoRoomError, match="needs a spool"):
            await m.fs.write(ino, fh, 5, b"x" * 3 * PART)
        await close(m, ino, fh)
        assert store._uploads == {}
        assert store.keys() == []


async def test_a_rename_takes_readers_and_writers_along(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        ino, fh = await m.create("a")
        await m.fs.write(ino, fh, 0, b"1")
        await m.fs.rename(ROOT_INO, "a", ROOT_INO, "b", replace=True)
        assert (await m.lookup("b")).ino == ino
        assert bodies(store) == {"b": b"1"}, "what is being written goes up first"
        assert bytes(await m.fs.read(ino, fh, Range(0, 9))) == b"1"
        await m.fs.write(ino, fh, 1, b"2")
        await close(m, ino, fh)
        assert bodies(store) == {"b": b"12"}


async def test_a_large_file_is_renamed_while_it_is_open_as_safetensors_publishes(
    mount: Mounting, store: SmallPages
) -> None:
    body = bytes(range(256)) * PART
    store.put_now("model", b"the one before")
    async with mount() as m:
        ino, fh = await m.create(".tmp1")
        await m.fs.setattr(ino, Changes(size=len(body)))
        for at in range(0, len(body), PART):
            await m.fs.write(ino, fh, at, body[at : at + PART])
        await m.fs.rename(ROOT_INO, ".tmp1", ROOT_INO, "model", replace=True)
        await close(m, ino, fh)
        assert bodies(store) == {"model": body}
        assert await m.names() == ["model"]
        assert await m.read("model") == body
        assert store._uploads == {}


@pytest.mark.expect_warnings
async def test_a_rename_tells_that_what_was_written_cannot_go_up(mount: Mounting, store: SmallPages) -> None:
    store.put_now("model", b"the one before")
    async with mount() as m:
        ino, fh = await m.create("a")
        await m.fs.write(ino, fh, 0, b"1")
        store.hook = fail_writes
        with pytest.raises(TransientStoreError):
            await m.fs.rename(ROOT_INO, "a", ROOT_INO, "model", replace=True)
        store.hook = None
        await m.fs.release(ino, fh)
        await m.settle()
        assert bodies(store) == {"model": b"the one before"}
        assert await m.names() == ["model"]


async def test_a_rename_over_a_file_is_its_end_also_while_it_is_written(mount: Mounting, store: SmallPages) -> None:
    store.put_now("old", b"old")
    async with mount() as m:
        await m.write("new", b"new")
        await m.write("newer", b"newer")
        writing, fh = await m.create("local")
        await m.fs.write(writing, fh, 0, b"x" * 5 * PART)
        await m.fs.rename(ROOT_INO, "new", ROOT_INO, "local", replace=True)
        await m.settle()
        assert store._uploads == {}
        await close(m, writing, fh)
        rewriting, fh = await m.open("old", os.O_WRONLY | os.O_TRUNC)
        await m.fs.rename(ROOT_INO, "newer", ROOT_INO, "old", replace=True)
        await close(m, rewriting, fh)
        assert bodies(store) == {"local": b"new", "old": b"newer"}
        assert await m.read("local") == b"new"
        assert await m.read("old") == b"newer"


async def test_a_rename_of_what_changed_meanwhile_fails_once_and_then_knows(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"v1")
    async with mount(ttl_s=float("inf")) as m:
        store.put_now("a", b"v2")
        with pytest.raises(StaleError):
            await m.fs.rename(ROOT_INO, "a", ROOT_INO, "b", replace=True)
        assert store.keys() == ["a"]
        await m.settle()
        await m.fs.rename(ROOT_INO, "a", ROOT_INO, "b", replace=True)
        assert bodies(store) == {"b": b"v2"}


@pytest.mark.expect_warnings
async def test_a_file_that_is_local_and_lost_cannot_be_opened_or_renamed(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        ino, fh = await m.create("a")
        await m.fs.write(ino, fh, 0, b"x" * 3 * PART)
        with pytest.raises(OutOfOrderError):
            await m.fs.write(ino, fh, 0, b"back")
        with pytest.raises(OutOfOrderError):
            await m.fs.rename(ROOT_INO, "a", ROOT_INO, "b", replace=True)
        await m.fs.release(ino, fh)  # without a flush, as after a fork
        await m.settle()
        assert store.keys() == []
        assert await m.names() == []


# -- other versions ---------------------------------------------------------------------


async def test_a_read_never_mixes_versions(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"1" * 100)
    async with mount() as m:
        ino, fh = await m.open("a")
        assert bytes(await m.fs.read(ino, fh, Range(0, 8))) == b"1" * 8
        store.put_now("a", b"2" * 100)
        assert bytes(await m.fs.read(ino, fh, Range(2, 6))) == b"1111", "resident"
        with pytest.raises(StaleError) as raised:
            await m.fs.read(ino, fh, Range(0, 100))
        assert raised.value.errno == errno.ESTALE
        await m.fs.release(ino, fh)
        await m.settle()
        assert await m.read("a") == b"2" * 100, "the failed read had the name looked up again"


async def test_handles_share_the_version_that_was_opened_first(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"1" * 20)
    async with mount() as m:
        ino, first = await m.open("a")
        await m.fs.read(ino, first, Range(0, 20))
        store.put_now("a", b"2" * 20)
        _, second = await m.open("a")
        assert bytes(await m.fs.read(ino, second, Range(0, 20))) == b"1" * 20
        await m.namespace.refresh()
        other, third = await m.open("a")
        assert other != ino
        assert bytes(await m.fs.read(other, third, Range(0, 20))) == b"2" * 20
        assert bytes(await m.fs.read(ino, first, Range(0, 20))) == b"1" * 20
        for number, fh in ((ino, first), (ino, second), (other, third)):
            await m.fs.release(number, fh)


# -- listing a directory ---------------------------------------------------------------------


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(directories, "BATCH", 4)
    return 4


async def _in_pieces(m: Mount, path: str, room: int, between: Callable[[list[str]], Any]) -> list[str]:
    """Readdir with room for so many entries in a call, as the kernel does; `between` gets the names of each piece."""
    fh = await m.fs.open_directory((await m.lookup(path)).ino)
    found: list[str] = []
    offset = 0
    while True:
        piece = []
        for name, _, after in await m.fs.read_directory(fh, offset):
            if len(piece) == room:
                break  # the kernel had no room for this one
            piece.append((name, after))
        if not piece:
            break
        names = [name for name, _ in piece]
        found += names
        offset = piece[-1][1]
        await between(names)
    m.fs.close_directory(fh)
    return found


@pytest.mark.parametrize("room", [1, 3, 4, 5, 100])
async def test_every_entry_is_told_once_while_what_was_told_is_deleted(
    mount: Mounting, store: SmallPages, small_batches: int, room: int
) -> None:
    """rm -rf: where the kernel's room and a batch ended together, the offset of a deleted entry was not found."""
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        store.put_now(f"d/{name}", b"")
    async with mount() as m:
        parent = (await m.lookup("d")).ino

        async def delete(told: list[str]) -> None:
            for name in told:
                await m.fs.unlink(parent, name)

        assert await _in_pieces(m, "d", room, delete) == names
        assert store.keys() == []


@pytest.mark.parametrize("room", [1, 3, 4, 5])
async def test_what_was_deleted_or_replaced_meanwhile_is_not_told_any_more(
    mount: Mounting, store: SmallPages, small_batches: int, room: int
) -> None:
    for number in range(12):
        store.put_now(f"{number:02}", b"v1")
    async with mount() as m:
        first = True

        async def change(told: list[str]) -> None:
            nonlocal first
            if first:
                first = False
                await m.fs.unlink(ROOT_INO, "07")
                await m.fs.unlink(ROOT_INO, "11")
                await m.write("08a", b"new")

        found = await _in_pieces(m, "", room, change)
        assert found == sorted({*(f"{number:02}" for number in range(12)), "08a"} - {"07", "11"})


async def test_an_offset_of_another_directory_or_of_nothing_is_refused(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a/x", b"")
    store.put_now("b/y", b"")
    async with mount() as m:
        x, b = (await m.lookup("a/x")).ino, (await m.lookup("b")).ino
        fh = await m.fs.open_directory(b)
        for offset in (x, 4711):
            with pytest.raises(StaleInodeError):
                list(await m.fs.read_directory(fh, offset))
        assert [name for name, _, _ in await m.entries(fh)] == ["y"]
        m.fs.close_directory(fh)
        m.fs.close_directory(fh)  # closing twice is nothing
        with pytest.raises(BadHandleError):
            await m.entries(fh)


async def test_a_seek_to_an_earlier_offset_goes_on_from_there(
    mount: Mounting, store: SmallPages, small_batches: int
) -> None:
    for number in range(10):
        store.put_now(f"{number}", b"")
    async with mount() as m:
        fh = await m.fs.open_directory(ROOT_INO)
        entries = await m.entries(fh)
        assert [name for name, _, _ in await m.entries(fh, entries[2][2])] == list("3456789")
        assert [name for name, _, _ in await m.entries(fh)] == list("0123456789")
        m.fs.close_directory(fh)


async def test_a_directory_that_goes_while_it_is_listed_ends(mount: Mounting, store: SmallPages) -> None:
    store.put_now("d/x", b"")
    async with mount() as m:
        fh = await m.fs.open_directory((await m.lookup("d")).ino)
        store.delete_now("d/x")
        await m.namespace.refresh()
        assert await m.entries(fh) == []
        m.fs.close_directory(fh)


# -- at the same time ---------------------------------------------------------------------


async def test_many_who_look_up_one_name_at_once_cost_one_check(mount: Mounting, store: SmallPages) -> None:
    store.put_now("a", b"1")
    async with mount(ttl_s=0) as m:
        asked(store)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(m.lookup, "a")
        assert len(asked(store)) <= 2


async def test_writes_and_commits_of_one_file_take_turns(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        ino, fh = await m.create("a")
        async with trio.open_nursery() as nursery:
            for number in range(PART):
                nursery.start_soon(m.fs.write, ino, fh, number, b"x")
                nursery.start_soon(m.fs.fsync, ino, fh)
        await close(m, ino, fh)
        assert store.body("a") == b"x" * PART


async def test_unlink_during_a_commit_leaves_nothing(mount: Mounting, store: SmallPages) -> None:
    async with mount() as m:
        for size in (3, 5 * PART):
            ino, fh = await m.create("a")
            await m.fs.write(ino, fh, 0, b"x" * size)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(m.fs.flush, ino, fh)
                nursery.start_soon(m.fs.unlink, ROOT_INO, "a")
            await m.fs.release(ino, fh)
            assert store.keys() == []
            assert await m.names() == []


@pytest.mark.parametrize("how", ["patch", "overwrite", "truncate", "after fsync"])
async def test_a_change_changes_the_time_and_what_is_set_stays(store: SmallPages, tmp_path: Path, how: str) -> None:
    clock = Clock()
    async with mounted(store, tmp_path / "index", clock=clock) as m:
        await m.write("f", b"content")
        born = (await m.lookup("f")).mtime_ns
        clock.advance(10)
        ino, fh = await m.open("f", os.O_RDWR | (os.O_TRUNC if how == "overwrite" else 0))
        if how == "truncate":
            await m.fs.setattr(ino, Changes(size=3))
        else:
            await m.fs.write(ino, fh, 0, b"changed")
        if how == "after fsync":
            await m.fs.fsync(ino, fh)
            clock.advance(10)
            await m.fs.write(ino, fh, 0, b"again")
        for told in (await m.fs.getattr(ino), await m.lookup("f")):
            assert told.mtime_ns == clock() > born
        clock.advance(10)
        changed = (await m.lookup("f")).mtime_ns
        await m.fs.write(ino, fh, 0, b"more")
        await m.fs.flush(ino, fh)
        if how != "truncate":  # that was a version of its own
            assert (await m.lookup("f")).mtime_ns == changed, "once for a version"
        await m.fs.write(ino, fh, 0, b"last")
        await m.fs.setattr(ino, Changes(mtime_ns=5))
        await m.fs.flush(ino, fh)
        await m.fs.release(ino, fh)
        assert (await m.lookup("f")).mtime_ns == 5, "as cp -p sets it before it closes"


@pytest.mark.parametrize("size", [0, 3, 20])
async def test_a_truncation_by_name_is_not_lost_when_the_writer_closes_meanwhile(
    mount: Mounting, store: SmallPages, size: int
) -> None:
    async with mount() as m:
        ino, fh = await m.create("f")
        await m.fs.write(ino, fh, 0, b"content")
        await m.fs.flush(ino, fh)
        file = m.fs.handles.file(fh).file
        async with trio.open_nursery() as nursery, file.turn:  # so that the truncation has begun, and waits
            nursery.start_soon(m.fs.setattr, ino, Changes(size=size))
            while not file.turn.statistics().tasks_waiting:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(m.fs.release, ino, fh)
            for _ in range(5):
                await trio.lowlevel.checkpoint()
        assert store.body("f") == b"content".ljust(size, b"\0")[:size]
        assert (await m.lookup("f")).size == size
        assert await m.read("f") == store.body("f")
