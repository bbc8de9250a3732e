"""The contract of `Store`, run against every implementation by test_contract.py.

What a server is known not to do is wrapped in `subject.limit(name)`: there the test must fail, and is reported as
xfailed with the reason; if it passes, the limit is gone and the test says so.
"""

from __future__ import annotations

import contextlib
import string
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from hashlib import md5

import pytest

from lazyfs.core.errors import (
    NoSuchUploadError,
    NotFoundError,
    NotSupportedByStoreError,
    PreconditionFailedError,
    StoreError,
)
from lazyfs.core.parts import MIN_PART_SIZE, multipart_etag
from lazyfs.core.types import Condition, ListPage, ObjectId, Range
from lazyfs.store.base import PutOptions, Store
from tests.servers import LIMITS

SAFE_KEYS = [
    "plain",
    "with space",
    "p%20cent",
    "p%",
    "plus+",
    "back\\slash",
    "emoji-😀",
    "é-nfc",
    "e\u0301-nfd",
    "q?x=1&y#z",
    "quote'\"<>",
    "trailing ",
    "deep/er/and/deeper",
    "..dots...",
    "a:b;c,d@e!$()*=~[]{}^`|",
    "dir/.hidden",
    "\u00a0nbsp",
]
PATHLESS_KEYS = ["a//b", "/leading", "trailing/", ".", "..", "a/./b", "a/../b"]
CONTROL_KEYS = ["new\nline", "\x01one"]
TAB_KEYS = ["tab\there", "del\x7fete"]
DATA = bytes(range(256)) * 4


@dataclass(frozen=True)
class Subject:
    """A store under test: how to open it, and what it is known not to do."""

    open: Callable[[], AbstractAsyncContextManager[Store]]
    limits: frozenset[str] = frozenset()

    @contextlib.contextmanager
    def limit(self, name: str) -> Iterator[None]:
        """The block fails where the limit is declared, and only there."""
        if name not in self.limits:
            yield
            return
        try:
            yield
        except (AssertionError, StoreError, pytest.fail.Exception):
            pytest.xfail(LIMITS[name])
        pytest.fail(f"the limit {name!r} no longer holds: take it out of tests/servers.py")


async def listed(store: Store, prefix: str = "", **options: str) -> list[ListPage]:
    return [page async for page in pages(store, prefix, 1000, **options)]


async def pages(store: Store, prefix: str, limit: int, **options: str) -> AsyncIterator[ListPage]:
    token: str | None = None
    while True:
        page = await store.list_page(prefix, token=token, limit=limit, **options)
        yield page
        token = page.next_token
        if token is None:
            return


def keys_of(found: list[ListPage]) -> list[str]:
    return [info.key for page in found for info in page.objects]


async def round_trip(store: Store, key: str) -> None:
    """Write, look, list, read, copy and delete one key."""
    body = b"body of " + key.encode()
    etag = await store.put(key, body)
    info = await store.head(key)
    assert (info.key, info.etag, info.size) == (key, etag, len(body))
    page = await store.list_page(key)
    assert [one.key for one in page.objects] == [key]
    assert (page.objects[0].etag, page.objects[0].mtime_ns) == (etag, info.mtime_ns)
    assert bytes(await store.get_range(info.oid, Range(0, len(body)))) == body
    await store.copy(info.oid, "copied")
    assert bytes(await store.get_range((await store.head("copied")).oid, Range(0, 7))) == b"body of"
    await store.delete(key)
    with pytest.raises(NotFoundError):
        await store.head(key)


class StoreContract:
    """Every implementation's test class inherits these and brings the fixture `subject`."""

    # -- objects ------------------------------------------------------------------------------------------------

    async def test_put_gives_md5_etag_and_head_tells_size_time_and_metadata(self, subject: Subject) -> None:
        async with subject.open() as store:
            metadata = {"file-mtime": "1700000000000000000ns", "file-permissions": "0100644"}
            etag = await store.put("k", memoryview(DATA)[1:], options=PutOptions(metadata=metadata))
            assert etag == md5(DATA[1:]).hexdigest()
            info = await store.head("k")
            assert (info.key, info.etag, info.size) == ("k", etag, len(DATA) - 1)
            assert dict(info.metadata) == metadata
            assert info.mtime_ns > 0
            assert info.mtime_ns % 1_000_000_000 == 0

    async def test_empty_object(self, subject: Subject) -> None:
        async with subject.open() as store:
            await store.put("empty", b"")
            assert (await store.head("empty")).size == 0
            assert (await store.list_page("")).objects[0].size == 0

    async def test_overwrite_replaces(self, subject: Subject) -> None:
        async with subject.open() as store:
            old = await store.put("k", b"old")
            new = await store.put("k", b"new!")
            assert old != new
            assert bytes(await store.get_range(ObjectId("k", new), Range(0, 4))) == b"new!"

    @pytest.mark.parametrize("key", SAFE_KEYS)
    async def test_odd_keys_round_trip(self, subject: Subject, key: str) -> None:
        async with subject.open() as store:
            await round_trip(store, key)

    @pytest.mark.parametrize("key", TAB_KEYS)
    async def test_keys_with_tab_and_del_round_trip(self, subject: Subject, key: str) -> None:
        async with subject.open() as store:
            await round_trip(store, key)

    async def test_keys_with_other_control_characters_round_trip(self, subject: Subject) -> None:
        async with subject.open() as store:
            with subject.limit("control-keys"):
                for key in CONTROL_KEYS:
                    await round_trip(store, key)

    @pytest.mark.parametrize("key", PATHLESS_KEYS)
    async def test_keys_that_are_no_paths_round_trip(self, subject: Subject, key: str) -> None:
        async with subject.open() as store:
            with subject.limit("folds-slashes"):
                await round_trip(store, key)

    async def test_missing_key(self, subject: Subject) -> None:
        async with subject.open() as store:
            await store.put("there", b"x")
            with pytest.raises(NotFoundError):
                await store.head("missing")
            with pytest.raises(NotFoundError):
                await store.get_range(ObjectId("missing", "0" * 32), Range(0, 1))
            with pytest.raises(NotFoundError):
                await store.copy(ObjectId("missing", "0" * 32), "copied")
            await store.delete("missing")

    # -- ranges -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "span",
        [
            Range(0, 1),
            Range(len(DATA) - 1, len(DATA)),
            Range(100, 357),
            Range(0, len(DATA)),
            Range(len(DATA) // 2, len(DATA)),
        ],
    )
    async def test_range(self, subject: Subject, span: Range) -> None:
        async with subject.open() as store:
            oid = ObjectId("k", await store.put("k", DATA))
            body = await store.get_range(oid, span)
            assert bytes(body) == DATA[span.start : span.stop]
            assert memoryview(body).readonly

    async def test_range_of_another_version_is_refused(self, subject: Subject) -> None:
        async with subject.open() as store:
            old = ObjectId("k", await store.put("k", b"the old bytes"))
            await store.put("k", b"the new bytes")
            with pytest.raises(PreconditionFailedError):
                await store.get_range(old, Range(0, 3))
            await store.put("k", b"x")  # now the range lies beyond the end, too
            with pytest.raises(PreconditionFailedError):
                await store.get_range(old, Range(8, 12))

    # -- lists --------------------------------------------------------------------------------------------------

    async def test_list_is_complete_and_in_key_order_whatever_the_limit(self, subject: Subject) -> None:
        names = sorted([f"p/{letter}/{number}" for letter in "aBz" for number in range(3)] + ["p/é", "p/😀", "p/-"])
        async with subject.open() as store:
            for name in reversed(names):
                await store.put(name, name.encode())
            await store.put("other", b"")
            for limit in (1, 4, 1000):
                found = [page async for page in pages(store, "p/", limit)]
                assert keys_of(found) == names
                assert all(len(page.objects) <= limit for page in found)

    async def test_delimiter_folds_what_lies_deeper(self, subject: Subject) -> None:
        async with subject.open() as store:
            for key in ("d/a", "d/b/1", "d/b/2", "d/c+ d/1", "d/z", "e"):
                await store.put(key, b"x")
            for limit in (1, 3, 1000):
                found = [page async for page in pages(store, "d/", limit, delimiter="/")]
                assert keys_of(found) == ["d/a", "d/z"]
                assert [prefix for page in found for prefix in page.prefixes] == ["d/b/", "d/c+ d/"]
            assert (await store.list_page("", delimiter="/")).prefixes == ("d/",)

    async def test_start_after(self, subject: Subject) -> None:
        async with subject.open() as store:
            for letter in string.ascii_lowercase[:6]:
                await store.put(f"k{letter}", b"x")
            assert keys_of(await listed(store, start_after="kc")) == ["kd", "ke", "kf"]
            assert keys_of(await listed(store, "k", start_after="kcc")) == ["kd", "ke", "kf"]
            assert keys_of(await listed(store, start_after="kf")) == []

    async def test_empty_list(self, subject: Subject) -> None:
        async with subject.open() as store:
            assert await store.list_page("nothing/here/") == ListPage(())

    async def test_file_and_directory_of_one_name(self, subject: Subject) -> None:
        async with subject.open() as store:
            with subject.limit("file-and-directory"):
                await store.put("a", b"file")
                await store.put("a/b", b"below")
                page = await store.list_page("", delimiter="/")
                assert ([info.key for info in page.objects], page.prefixes) == (["a"], ("a/",))

    async def test_directory_marker(self, subject: Subject) -> None:
        async with subject.open() as store:
            await store.put("dir/", b"")
            await store.put("dir/file", b"x")
            assert (await store.list_page("", delimiter="/")).prefixes == ("dir/",)
            assert keys_of(await listed(store, "dir/")) == ["dir/", "dir/file"]
            with subject.limit("marker-etag"):
                assert (await store.head("dir/")).etag == md5(b"").hexdigest()

    # -- conditions ---------------------------------------------------------------------------------------------

    async def test_put_if_absent(self, subject: Subject) -> None:
        async with subject.open() as store:
            await store.put("k", b"mine", condition=Condition(absent=True))
            with subject.limit("conditional-put"):
                with pytest.raises(PreconditionFailedError):
                    await store.put("k", b"theirs", condition=Condition(absent=True))
                assert (await store.head("k")).size == 4

    async def test_put_if_match(self, subject: Subject) -> None:
        async with subject.open() as store:
            etag = await store.put("k", b"one")
            two = await store.put("k", b"two2", condition=Condition(etag=etag))
            with subject.limit("conditional-put"):
                with pytest.raises(PreconditionFailedError):
                    await store.put("k", b"three", condition=Condition(etag=etag))
                assert (await store.head("k")).etag == two
                with pytest.raises(PreconditionFailedError):
                    await store.put("missing", b"x", condition=Condition(etag=etag))

    async def test_complete_if_absent(self, subject: Subject) -> None:
        async with subject.open() as store:
            await store.put("k", b"theirs")
            upload = await store.create_upload("k")
            part = await store.upload_part(upload, 1, b"mine")
            with subject.limit("conditional-put"):
                with pytest.raises(PreconditionFailedError):
                    await store.complete_upload(upload, [part], condition=Condition(absent=True))
                await store.abort_upload(upload)

    # -- multipart ----------------------------------------------------------------------------------------------

    async def test_multipart_out_of_order(self, subject: Subject) -> None:
        async with subject.open() as store:
            options = PutOptions(metadata={"file-owner": "1000"})
            upload = await store.create_upload("big", options=options)
            first, second = bytes(MIN_PART_SIZE), b"tail"
            parts = [await store.upload_part(upload, 2, second), await store.upload_part(upload, 1, memoryview(first))]
            with pytest.raises(NotFoundError):
                await store.head("big")
            etag = await store.complete_upload(upload, parts)
            assert etag == multipart_etag(parts[::-1])
            info = await store.head("big")
            assert (info.etag, info.size, dict(info.metadata)) == (etag, MIN_PART_SIZE + 4, {"file-owner": "1000"})
            span = Range(MIN_PART_SIZE - 2, MIN_PART_SIZE + 4)
            assert bytes(await store.get_range(info.oid, span)) == b"\0\0tail"
            assert await store.list_uploads("") == []

    async def test_repeated_part_replaces(self, subject: Subject) -> None:
        async with subject.open() as store:
            upload = await store.create_upload("k")
            await store.upload_part(upload, 1, b"first")
            part = await store.upload_part(upload, 1, b"second")
            assert (part.number, part.size) == (1, 6)
            etag = await store.complete_upload(upload, [part])
            assert bytes(await store.get_range(ObjectId("k", etag), Range(0, 6))) == b"second"

    async def test_too_small_part_fails_the_completion(self, subject: Subject) -> None:
        async with subject.open() as store:
            upload = await store.create_upload("k")
            parts = [await store.upload_part(upload, number, b"small") for number in (1, 2)]
            with subject.limit("small-parts"):
                with pytest.raises(StoreError):
                    await store.complete_upload(upload, parts)
                with pytest.raises(NotFoundError):
                    await store.head("k")

    async def test_abort_leaves_nothing_and_may_be_repeated(self, subject: Subject) -> None:
        async with subject.open() as store:
            upload = await store.create_upload("k")
            part = await store.upload_part(upload, 1, b"x")
            await store.abort_upload(upload)
            await store.abort_upload(upload)
            assert await store.list_uploads("") == []
            with subject.limit("unknown-upload"):
                with pytest.raises(NoSuchUploadError):
                    await store.upload_part(upload, 2, b"x")
                with pytest.raises(NoSuchUploadError):
                    await store.complete_upload(upload, [part])

    async def test_completing_twice_finds_the_upload_gone(self, subject: Subject) -> None:
        async with subject.open() as store:
            upload = await store.create_upload("k")
            part = await store.upload_part(upload, 1, b"x")
            await store.complete_upload(upload, [part])
            with subject.limit("unknown-upload"), pytest.raises(NoSuchUploadError):
                await store.complete_upload(upload, [part])

    async def test_list_uploads_below_a_prefix(self, subject: Subject) -> None:
        async with subject.open() as store:
            uploads = [await store.create_upload(key) for key in ("a/with space+%", "a/😀", "b")]
            found = await store.list_uploads("a/")
            assert {(upload.key, upload.upload_id) for upload in found} == {
                (upload.key, upload.upload_id) for upload in uploads[:2]
            }
            for upload in uploads:
                await store.abort_upload(upload)

    # -- copy and delete ----------------------------------------------------------------------------------------

    async def test_copy_keeps_bytes_and_metadata(self, subject: Subject) -> None:
        async with subject.open() as store:
            source = ObjectId(
                "from + %41", await store.put("from + %41", DATA, options=PutOptions(metadata={"a": "b"}))
            )
            etag = await store.copy(source, "to/é")
            info = await store.head("to/é")
            assert (info.etag, info.size, dict(info.metadata)) == (etag, len(DATA), {"a": "b"})
            assert bytes(await store.get_range(info.oid, Range(0, 256))) == DATA[:256]

    async def test_an_object_is_made_of_ranges_of_another(self, subject: Subject) -> None:
        """The server copies them; the last may be short."""
        async with subject.open() as store:
            first, second = b"1" * MIN_PART_SIZE, b"the end"
            await store.put("whole", first + second, options=PutOptions(content_type="text/plain"))
            info = await store.head("whole")
            upload = await store.create_upload("copied")
            parts = [
                await store.copy_part(upload, 2, info.oid, Range(MIN_PART_SIZE, info.size)),
                await store.copy_part(upload, 1, info.oid, Range(0, MIN_PART_SIZE)),
            ]
            etag = await store.complete_upload(upload, parts)
            copied = await store.head("copied")
            assert (copied.etag, copied.size) == (etag, info.size)
            assert bytes(await store.get_range(copied.oid, Range(MIN_PART_SIZE - 1, copied.size))) == b"1the end"
            assert info.content_type == "text/plain"
            gone = ObjectId("missing", "0" * 32)
            upload = await store.create_upload("copied")
            with pytest.raises(NotFoundError):
                await store.copy_part(upload, 1, gone, Range(0, 5))
            await store.abort_upload(upload)

    async def test_copy_of_another_version_is_refused(self, subject: Subject) -> None:
        async with subject.open() as store:
            old = ObjectId("k", await store.put("k", b"old"))
            await store.put("k", b"new")
            with subject.limit("copy-if-match"), pytest.raises(PreconditionFailedError):
                await store.copy(old, "copied")

    async def test_a_bucket_that_is_no_directory_bucket_does_not_rename(self, subject: Subject) -> None:
        async with subject.open() as store:
            oid = ObjectId("from", await store.put("from", DATA))
            with pytest.raises(NotSupportedByStoreError):
                await store.rename(oid, "to", token="0")
            assert (await store.head("from")).etag == oid.etag

    async def test_metadata_of_an_object_is_changed(self, subject: Subject) -> None:
        async with subject.open() as store:
            oid = ObjectId("k é", await store.put("k é", DATA, options=PutOptions(metadata={"a": "1", "b": "2"})))
            etag = await store.set_metadata(oid, {"b": "3", "c": "4"})
            info = await store.head("k é")
            assert (info.etag, info.size, dict(info.metadata)) == (etag, len(DATA), {"a": "1", "b": "3", "c": "4"})
            assert etag == oid.etag, "that of a single part is the MD5 of its bytes"
            assert bytes(await store.get_range(info.oid, Range(0, 256))) == DATA[:256]
            assert await store.set_metadata(info.oid, {"b": None, "never": None}) == etag
            assert dict((await store.head("k é")).metadata) == {"a": "1", "c": "4"}
            assert await store.set_metadata(info.oid, {"a": "1"}) == etag, "no change at all"

    async def test_metadata_of_a_multipart_object_is_changed(self, subject: Subject) -> None:
        async with subject.open() as store:
            upload = await store.create_upload("k", options=PutOptions(metadata={"a": "1"}))
            parts = [await store.upload_part(upload, 1, b"1" * MIN_PART_SIZE), await store.upload_part(upload, 2, b"2")]
            oid = ObjectId("k", await store.complete_upload(upload, parts))
            etag = await store.set_metadata(oid, {"b": "2"})
            info = await store.head("k")
            assert (info.etag, info.size, dict(info.metadata)) == (etag, MIN_PART_SIZE + 1, {"a": "1", "b": "2"})
            assert bytes(await store.get_range(info.oid, Range(MIN_PART_SIZE - 1, MIN_PART_SIZE + 1))) == b"12"

    async def test_metadata_of_another_version_stays(self, subject: Subject) -> None:
        async with subject.open() as store:
            with pytest.raises(NotFoundError):
                await store.set_metadata(ObjectId("k", "0" * 32), {"a": "1"})
            old = ObjectId("k", await store.put("k", b"old"))
            await store.put("k", b"new")
            with pytest.raises(PreconditionFailedError):
                await store.set_metadata(old, {"a": "1"})
            assert dict((await store.head("k")).metadata) == {}

    async def test_metadata_of_a_directory_marker(self, subject: Subject) -> None:
        async with subject.open() as store:
            with subject.limit("marker-metadata"):
                await store.put("dir/", b"", options=PutOptions(metadata={"file-permissions": "0040700"}))
                assert dict((await store.head("dir/")).metadata) == {"file-permissions": "0040700"}

    async def test_deleted_is_gone(self, subject: Subject) -> None:
        async with subject.open() as store:
            etag = await store.put("k", b"x")
            await store.delete("k")
            with pytest.raises(NotFoundError):
                await store.get_range(ObjectId("k", etag), Range(0, 1))
            assert keys_of(await listed(store)) == []
