"""The shipped, verified fake: a bucket in a dict.

It passes the same contract suite as the real endpoints (tests/store/contract.py), so a test that needs no network
uses this. It never blocks and never sleeps; each call passes one checkpoint where a real store would wait.
What only tests need is here too: `requests` logs every call, `hook` injects faults before or after a call takes
effect, and `capabilities` lets it misbehave the way some endpoints do.
"""

from __future__ import annotations

import base64
import bisect
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import md5

import trio

from lazyfs.core.errors import (
    NoSuchUploadError,
    NotFoundError,
    NotSupportedByStoreError,
    PreconditionFailedError,
    StoreError,
    TruncatedError,
)
from lazyfs.core.parts import MAX_PARTS, MIN_PART_SIZE, multipart_etag
from lazyfs.core.types import (
    ANY,
    Buffer,
    Capabilities,
    Condition,
    ListPage,
    ObjectId,
    ObjectInfo,
    Part,
    Range,
    Upload,
)
from lazyfs.store.base import DEFAULT_PUT, PutOptions
from lazyfs.store.metadata import changed
from lazyfs.store.probe import RangeAnswer

_NS = 1_000_000_000
_MAX_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One call that a MemoryStore received, whether it succeeded or not."""

    verb: str
    key: str
    span: Range | None = None


@dataclass(frozen=True, slots=True)
class _Stored:
    body: bytes
    etag: str
    mtime_ns: int
    metadata: Mapping[str, str]
    storage_class: str
    content_type: str


@dataclass(slots=True)
class _Pending:
    upload: Upload
    options: PutOptions
    parts: dict[int, tuple[Part, bytes]] = field(default_factory=dict)


class MemoryStore:
    """A `Store` that forgets everything when it is dropped.

    clock          nanoseconds since the epoch; kept to whole seconds, as S3 does
    min_part_size  a shorter part that is not the last fails the completion, as S3 does; tests may lower it
    capabilities   what is honoured; `conditional_put=False` ignores conditions silently, as some endpoints do
    renames        as a directory bucket does
    hook           called as hook("before" | "after", verb, key) around each call; what it raises is the call's answer
    """

    def __init__(
        self,
        *,
        clock: Callable[[], int] = time.time_ns,
        min_part_size: int = MIN_PART_SIZE,
        capabilities: Capabilities | None = None,
        renames: bool = False,
        hook: Callable[[str, str, str], None] | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.capabilities = capabilities or Capabilities()
        self.hook = hook
        self._clock = clock
        self._min_part_size = min_part_size
        self._objects: dict[str, _Stored] = {}
        self._keys: list[str] = []  # sorted; code points sort as UTF-8 bytes do
        self._uploads: dict[str, _Pending] = {}
        self.renames = renames
        self._renamed: set[str] = set()
        """Tokens of what was done."""
        self._numbers = itertools.count(1)

    # -- for tests: the same without waiting and without a log -----------------------------------------------

    def put_now(self, key: str, body: Buffer, *, metadata: Mapping[str, str] | None = None) -> ObjectInfo:
        """Create or replace an object as somebody else would; what HEAD says of it now."""
        self._write(key, bytes(body), _md5(body), PutOptions(metadata=metadata or {}))
        return self._info(key)

    def delete_now(self, key: str) -> None:
        """Remove an object as somebody else would."""
        if self._objects.pop(key, None) is not None:
            del self._keys[bisect.bisect_left(self._keys, key)]

    def body(self, key: str) -> bytes:
        """The bytes of the object now. NotFoundError if there is none."""
        return self._stored(key).body

    def keys(self) -> list[str]:
        """All keys in order."""
        return list(self._keys)

    # -- the Store ------------------------------------------------------------------------------------------

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str = "",
        start_after: str = "",
        token: str | None = None,
        limit: int = 1000,
    ) -> ListPage:
        """See Store.list_page."""
        await self._begin("list", prefix)
        after = start_after if token is None else _decode_token(token)
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        last = ""
        index = self._first_after(prefix, after, delimiter if token is not None else "")
        while index < len(self._keys) and self._keys[index].startswith(prefix):
            if len(objects) + len(prefixes) >= min(limit, 1000):
                return ListPage(tuple(objects), tuple(prefixes), _encode_token(last))
            key = self._keys[index]
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            if cut < 0:
                objects.append(self._info(key, metadata=False))
                last = key
                index += 1
            else:
                last = key[: cut + len(delimiter)]
                prefixes.append(last)
                index = self._first_after(prefix, last, delimiter)
        self._end("list", prefix)
        return ListPage(tuple(objects), tuple(prefixes))

    async def head(self, key: str) -> ObjectInfo:
        """See Store.head."""
        await self._begin("head", key)
        info = self._info(key)
        self._end("head", key)
        return info

    async def get_range(self, oid: ObjectId, span: Range) -> Buffer:
        """See Store.get_range. Zero-copy: a view of the stored bytes."""
        await self._begin("get", oid.key, span)
        stored = self._stored(oid.key)
        if stored.etag != oid.etag:
            raise PreconditionFailedError(f"GET {oid.key!r}: the object is another version now")
        view = memoryview(stored.body)[span.start : span.stop]
        if span.size <= 0 or len(view) != span.size:
            raise TruncatedError(f"GET {oid.key!r}: bytes {span.start}-{span.stop} are not all in the object")
        self._end("get", oid.key)
        return view

    async def get_any(self, key: str, *, limit_bytes: int) -> Buffer:
        """See Blobs.get_any."""
        await self._begin("get", key)
        body = self._stored(key).body
        self._end("get", key)
        return body if len(body) <= limit_bytes else b""

    credentials_version = 0

    async def renew_credentials(self, version: int) -> bool:
        """See probe.Probeable. There are none."""
        await trio.lowlevel.checkpoint()
        return False

    async def range_answer(self, key: str, span: Range, if_match: str) -> RangeAnswer:
        """See probe.Probeable: what the endpoint itself does with a range GET."""
        await self._begin("get", key, span)
        stored = self._stored(key)
        if stored.etag != if_match and self.capabilities.if_match_get:
            return RangeAnswer(412, "", 0)
        return RangeAnswer(206 if self.capabilities.range_206 else 200, stored.etag, span.size)

    async def put(
        self, key: str, body: Buffer, *, options: PutOptions = DEFAULT_PUT, condition: Condition = ANY
    ) -> str:
        """See Store.put."""
        await self._begin("put", key)
        self._check(key, condition)
        etag = _md5(body)
        self._write(key, bytes(body), etag, options)
        self._end("put", key)
        return etag

    async def create_upload(self, key: str, *, options: PutOptions = DEFAULT_PUT) -> Upload:
        """See Store.create_upload."""
        await self._begin("create_upload", key)
        upload = Upload(key, f"upload-{next(self._numbers)}", self._clock() // _NS * _NS)
        self._uploads[upload.upload_id] = _Pending(upload, options)
        self._end("create_upload", key)
        return upload

    async def upload_part(self, upload: Upload, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""
        await self._begin("upload_part", upload.key)
        pending = self._pending(upload)
        if not 1 <= number <= MAX_PARTS:
            raise StoreError(f"part {number} of {upload.key!r}: numbers go from 1 to {MAX_PARTS}")
        part = Part(number, _md5(body), len(body))
        pending.parts[number] = (part, bytes(body))
        self._end("upload_part", upload.key)
        return part

    async def copy_part(self, upload: Upload, number: int, source: ObjectId, span: Range) -> Part:
        """See Store.copy_part."""
        await self._begin("copy_part", upload.key)
        pending, stored = self._pending(upload), self._stored(source.key)
        if stored.etag != source.etag:
            raise PreconditionFailedError(f"copy {source.key!r}: the object is another version now")
        body = bytes(stored.body[span.start : span.stop])
        part = Part(number, _md5(body), len(body))
        pending.parts[number] = (part, body)
        self._end("copy_part", upload.key)
        return part

    async def complete_upload(self, upload: Upload, parts: Sequence[Part], *, condition: Condition = ANY) -> str:
        """See Store.complete_upload."""
        await self._begin("complete_upload", upload.key)
        pending = self._pending(upload)
        ordered = sorted(parts, key=lambda part: part.number)
        for part in ordered:
            known = pending.parts.get(part.number)
            if known is None or known[0].etag != part.etag:
                raise StoreError(f"complete {upload.key!r}: part {part.number} is not what was uploaded")
        if not ordered or any(part.size < self._min_part_size for part in ordered[:-1]):
            raise StoreError(f"complete {upload.key!r}: a part that is not the last is too small")
        self._check(upload.key, condition)
        etag = multipart_etag(ordered)
        assert etag is not None  # our part ETags are MD5 sums
        body = b"".join(pending.parts[part.number][1] for part in ordered)
        self._write(upload.key, body, etag, pending.options)
        del self._uploads[upload.upload_id]
        self._end("complete_upload", upload.key)
        return etag

    async def abort_upload(self, upload: Upload) -> None:
        """See Store.abort_upload."""
        await self._begin("abort_upload", upload.key)
        self._uploads.pop(upload.upload_id, None)
        self._end("abort_upload", upload.key)

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        """See Store.list_uploads."""
        await self._begin("list_uploads", prefix)
        uploads = [pending.upload for pending in self._uploads.values() if pending.upload.key.startswith(prefix)]
        self._end("list_uploads", prefix)
        return sorted(uploads, key=lambda upload: (upload.key, upload.upload_id))[:1000]

    async def copy(self, source: ObjectId, key: str) -> str:
        """See Store.copy. The copy of a multipart object has a plain ETag, as on S3."""
        await self._begin("copy", key)
        stored = self._stored(source.key)
        if stored.etag != source.etag:
            raise PreconditionFailedError(f"copy {source.key!r}: the object is another version now")
        etag = _md5(stored.body)
        self._write(key, stored.body, etag, _options_of(stored))
        self._end("copy", key)
        return etag

    async def rename(self, source: ObjectId, key: str, *, token: str) -> str:
        """See Store.rename. Metadata and ETag stay."""
        await self._begin("rename", key)
        if not self.renames:
            raise NotSupportedByStoreError(f"rename {source.key!r}: this store cannot")
        if token not in self._renamed:
            stored = self._stored(source.key)
            if stored.etag != source.etag:
                raise PreconditionFailedError(f"rename {source.key!r}: the object is another version now")
            self.delete_now(source.key)
            self._write(key, stored.body, stored.etag, _options_of(stored))
            self._renamed.add(token)
        self._end("rename", key)
        return self._stored(key).etag

    async def set_metadata(self, oid: ObjectId, changes: Mapping[str, str | None]) -> str:
        """See Store.set_metadata. As with a copy, the ETag is a plain one afterwards."""
        await self._begin("set_metadata", oid.key)
        stored = self._stored(oid.key)
        if stored.etag != oid.etag:
            raise PreconditionFailedError(f"set metadata of {oid.key!r}: the object is another version now")
        after = changed(stored.metadata, changes)
        etag = _md5(stored.body)
        self._write(oid.key, stored.body, etag, replace(_options_of(stored), metadata=after))
        self._end("set_metadata", oid.key)
        return etag

    async def delete(self, key: str) -> None:
        """See Store.delete."""
        await self._begin("delete", key)
        self.delete_now(key)
        self._end("delete", key)

    async def aclose(self) -> None:
        """See Store.aclose."""
        await trio.lowlevel.checkpoint()

    # -- inside ---------------------------------------------------------------------------------------------

    async def _begin(self, verb: str, key: str, span: Range | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self.requests.append(Request(verb, key, span))
        if self.hook is not None:
            self.hook("before", verb, key)

    def _end(self, verb: str, key: str) -> None:
        if self.hook is not None:
            self.hook("after", verb, key)

    def _first_after(self, prefix: str, after: str, delimiter: str) -> int:
        """Index of the first key below `prefix` and after `after`; after all of it if it is a folded prefix."""
        if delimiter and after.endswith(delimiter) and len(after) > len(prefix):
            low = bisect.bisect_left(self._keys, after)
            return bisect.bisect_left(self._keys, 1, low, key=lambda key: 0 if key.startswith(after) else 1)
        return max(bisect.bisect_left(self._keys, prefix), bisect.bisect_right(self._keys, after) if after else 0)

    def _stored(self, key: str) -> _Stored:
        try:
            return self._objects[key]
        except KeyError:
            raise NotFoundError(f"{key!r}: no such key") from None

    def _info(self, key: str, *, metadata: bool = True) -> ObjectInfo:
        stored = self._stored(key)
        told = (dict(stored.metadata), stored.content_type) if metadata else ()
        return ObjectInfo(key, stored.etag, len(stored.body), stored.mtime_ns, stored.storage_class, *told)

    def _pending(self, upload: Upload) -> _Pending:
        try:
            return self._uploads[upload.upload_id]
        except KeyError:
            raise NoSuchUploadError(f"{upload.key!r}: the upload is gone") from None

    def _check(self, key: str, condition: Condition) -> None:
        if not self.capabilities.conditional_put:
            return
        stored = self._objects.get(key)
        if condition.absent and stored is not None:
            raise PreconditionFailedError(f"{key!r} exists already")
        if condition.etag is not None and (stored is None or stored.etag != condition.etag):
            raise PreconditionFailedError(f"{key!r} is another version now")

    def _write(self, key: str, body: bytes, etag: str, options: PutOptions) -> None:
        if not key or len(key.encode("utf-8", "surrogateescape")) > _MAX_KEY_BYTES:
            raise StoreError(f"{key[:40]!r}: a key has 1 to {_MAX_KEY_BYTES} bytes")
        if key not in self._objects:
            bisect.insort(self._keys, key)
        mtime_ns = self._clock() // _NS * _NS
        storage_class = options.storage_class or "STANDARD"
        self._objects[key] = _Stored(body, etag, mtime_ns, dict(options.metadata), storage_class, options.content_type)


def _options_of(stored: _Stored) -> PutOptions:
    return PutOptions(stored.content_type, stored.metadata, stored.storage_class)


def _md5(body: Buffer) -> str:
    return md5(body, usedforsecurity=False).hexdigest()


def _encode_token(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode("utf-8", "surrogateescape")).decode()


def _decode_token(token: str) -> str:
    return base64.urlsafe_b64decode(token).decode("utf-8", "surrogateescape")
