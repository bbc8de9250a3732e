"""The only retry loop.

Each call of the inner store is one attempt with a deadline of its own; what is transient is tried again with backoff
inside the deadline of `Backoff`, and then the last error is raised as it is.

The hard point is a lost answer: the first attempt may have done its work. A repeated read is harmless, and a repeated
unconditional write makes the same object again; but a conditional put finds its own object in the way, and a repeated
completion finds its upload gone. Then the object itself is asked: if it has the ETag and the size that ours must
have, the call has succeeded. A repeated `create_upload` may leave an empty upload behind, which is looked
for and aborted.

Credentials that have expired are looked for anew, once for each call: whoever has renewed them did so behind our back.
"""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import md5
from typing import NamedTuple, TypeVar

import trio

from lazyfs.core.backoff import Backoff
from lazyfs.core.errors import (
    ExpiredCredentialsError,
    NoSuchUploadError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    ThrottledError,
    TransientStoreError,
)
from lazyfs.core.parts import multipart_etag
from lazyfs.core.stats import Stats
from lazyfs.core.types import ANY, Buffer, Condition, ListPage, ObjectId, ObjectInfo, Part, Range, Upload
from lazyfs.store.base import DEFAULT_PUT, PutOptions
from lazyfs.store.probe import RangeAnswer, Renewable

T = TypeVar("T")
log = logging.getLogger("lazyfs.store")
_CLOCK_STEP_S = 1
"""Servers tell whole seconds."""


class _About(NamedTuple):
    """What a call is about, for the log."""

    verb: str
    key: str
    span: Range | None = None

    def log(self, attempt: int, outcome: str, began_s: float) -> None:
        """One line for each attempt; error texts stay out of it, which may repeat what a server sent."""
        if log.isEnabledFor(logging.DEBUG):
            span = "" if self.span is None else f" range={self.span.start}-{self.span.stop}"
            ms = (trio.current_time() - began_s) * 1000
            log.debug("%s key=%r%s attempt=%d outcome=%s ms=%.1f", self.verb, self.key, span, attempt, outcome, ms)


class Retrying:
    """A `Store` that does not give up at the first transient error of `inner`. At level debug each attempt is logged.

    Counts `s3.retries` and, among their causes, `s3.throttles`; `on_throttled` hears of each of the latter as it comes.
    """

    def __init__(
        self,
        inner: Renewable,
        *,
        backoff: Backoff,
        stats: Stats,
        random: Callable[[], float] = random_module.random,
        on_throttled: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner = inner
        self._backoff = backoff
        self._stats = stats
        self._random = random
        self._on_throttled = on_throttled

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
        return await self._retry(
            _About("list", prefix),
            lambda: self._inner.list_page(
                prefix, delimiter=delimiter, start_after=start_after, token=token, limit=limit
            ),
        )

    async def head(self, key: str) -> ObjectInfo:
        """See Store.head."""
        return await self._retry(_About("head", key), lambda: self._inner.head(key))

    async def get_range(self, oid: ObjectId, span: Range) -> Buffer:
        """See Store.get_range."""
        return await self._retry(_About("get", oid.key, span), lambda: self._inner.get_range(oid, span))

    async def range_answer(self, key: str, span: Range, if_match: str) -> RangeAnswer:
        """See probe.Probeable."""
        return await self._retry(_About("get", key, span), lambda: self._inner.range_answer(key, span, if_match))

    async def put(
        self, key: str, body: Buffer, *, options: PutOptions = DEFAULT_PUT, condition: Condition = ANY
    ) -> str:
        """See Store.put."""

        async def ours(error: StoreError) -> str | None:
            if not isinstance(error, PreconditionFailedError):
                return None
            return await self._is_ours(key, md5(body, usedforsecurity=False).hexdigest(), len(body))

        return await self._retry(
            _About("put", key, Range(0, len(body))),
            lambda: self._inner.put(key, body, options=options, condition=condition),
            answer_lost=ours,
        )

    async def create_upload(self, key: str, *, options: PutOptions = DEFAULT_PUT) -> Upload:
        """See Store.create_upload. What an attempt without an answer has begun is aborted."""
        started, lost = trio.current_time(), 0

        async def create() -> Upload:
            nonlocal lost
            try:
                return await self._inner.create_upload(key, options=options)
            except ThrottledError:
                raise  # refused, and nothing done
            except TransientStoreError:
                lost += 1
                raise

        upload = await self._retry(_About("create_upload", key), create)
        if lost:
            await self._abort_lost(upload, lost, trio.current_time() - started)
        return upload

    async def _abort_lost(self, ours: Upload, lost: int, elapsed_s: float) -> None:
        """Abort what `lost` attempts within `elapsed_s` before `ours` may have begun: uploads of the same key, and no
        older. If there are more than attempts, some are of somebody else, and all stay."""
        try:
            found = [upload for upload in await self.list_uploads(ours.key) if upload.key == ours.key]
            begun_ns = next((upload.begun_ns for upload in found if upload == ours), None)
            if begun_ns is None:
                return
            oldest_ns = begun_ns - int((elapsed_s + _CLOCK_STEP_S) * 1e9)
            others = [upload for upload in found if upload != ours and oldest_ns <= upload.begun_ns <= begun_ns]
            for upload in others if len(others) <= lost else ():
                await self.abort_upload(upload)
        except StoreError as error:  # it holds nothing; what was asked for has succeeded
            log.info("an upload of %r that was begun twice may be left: %s", ours.key, error)

    async def upload_part(self, upload: Upload, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""
        return await self._retry(
            _About(f"upload_part {number}", upload.key, Range(0, len(body))),
            lambda: self._inner.upload_part(upload, number, body),
        )

    async def complete_upload(self, upload: Upload, parts: Sequence[Part], *, condition: Condition = ANY) -> str:
        """See Store.complete_upload."""

        async def ours(error: StoreError) -> str | None:
            if not isinstance(error, NoSuchUploadError | NotFoundError | PreconditionFailedError):
                return None
            ordered = sorted(parts, key=lambda part: part.number)
            return await self._is_ours(upload.key, multipart_etag(ordered), sum(part.size for part in ordered))

        return await self._retry(
            _About("complete_upload", upload.key),
            lambda: self._inner.complete_upload(upload, parts, condition=condition),
            answer_lost=ours,
        )

    async def abort_upload(self, upload: Upload) -> None:
        """See Store.abort_upload."""
        await self._retry(_About("abort_upload", upload.key), lambda: self._inner.abort_upload(upload))

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        """See Store.list_uploads."""
        return await self._retry(_About("list_uploads", prefix), lambda: self._inner.list_uploads(prefix))

    async def copy_part(self, upload: Upload, number: int, source: ObjectId, span: Range) -> Part:
        """See Store.copy_part."""
        return await self._retry(
            _About(f"copy_part {number}", upload.key, span), lambda: self._inner.copy_part(upload, number, source, span)
        )

    async def copy(self, source: ObjectId, key: str) -> str:
        """See Store.copy."""
        return await self._retry(_About("copy", key), lambda: self._inner.copy(source, key))

    async def rename(self, source: ObjectId, key: str, *, token: str) -> str:
        """See Store.rename. The server knows a repeated token, so a lost answer is given again."""
        return await self._retry(_About("rename", key), lambda: self._inner.rename(source, key, token=token))

    async def set_metadata(self, oid: ObjectId, changes: Mapping[str, str | None]) -> str:
        """See Store.set_metadata. If the ETag changes and the answer is lost, it is refused as another version: nobody
        can tell that from somebody else's."""
        return await self._retry(_About("set_metadata", oid.key), lambda: self._inner.set_metadata(oid, changes))

    async def delete(self, key: str) -> None:
        """See Store.delete."""
        await self._retry(_About("delete", key), lambda: self._inner.delete(key))

    async def aclose(self) -> None:
        """See Store.aclose."""
        await self._inner.aclose()

    async def _retry(
        self,
        about: _About,
        call: Callable[[], Awaitable[T]],
        *,
        answer_lost: Callable[[StoreError], Awaitable[T | None]] | None = None,
    ) -> T:
        """The first answer that is not a transient error.

        `answer_lost` is asked about a lasting error that follows a transient one: the result that the earlier
        attempt had, or None if the error stands.
        """
        started = trio.current_time()
        attempt, renewed = 0, False
        while True:
            attempt += 1
            version, began = self._inner.credentials_version, trio.current_time()
            try:
                answer = await call()
                about.log(attempt, "ok", began)
                return answer
            except ExpiredCredentialsError as error:
                about.log(attempt, type(error).__name__, began)
                if renewed or not await self._inner.renew_credentials(version):
                    raise
                renewed = True
            except TransientStoreError as error:
                about.log(attempt, type(error).__name__, began)
                await self._wait(attempt, trio.current_time() - started, error)
            except StoreError as error:
                about.log(attempt, type(error).__name__, began)
                result = await answer_lost(error) if answer_lost is not None and attempt > 1 else None
                if result is None:
                    raise
                return result

    async def _wait(self, attempt: int, elapsed_s: float, error: TransientStoreError) -> None:
        """Sleep before the next attempt, or raise `error` if the time is up."""
        if isinstance(error, ThrottledError):
            self._stats.add("s3.throttles")
            self._on_throttled()
        delay_s = self._backoff.delay_s(attempt, elapsed_s, self._random)
        if delay_s is None:
            raise error
        self._stats.add("s3.retries")
        log.info("attempt %d failed, next in %.1f s: %s", attempt, delay_s, error)
        await trio.sleep(delay_s)

    async def _is_ours(self, key: str, etag: str | None, size: int) -> str | None:
        """The ETag of the object at `key` if it is the one that we meant to write, else None."""
        if etag is None:
            return None
        try:
            info = await self.head(key)
        except NotFoundError:
            return None
        return info.etag if (info.etag, info.size) == (etag, size) else None
