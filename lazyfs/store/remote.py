"""A bucket behind a real endpoint: control plane, bulk reader and lister composed into one `Store`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from lazyfs.core.errors import NotSupportedByStoreError
from lazyfs.core.stats import Stats
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
from lazyfs.store.bodies import BodySender
from lazyfs.store.bulk import BulkReader
from lazyfs.store.listing import Lister
from lazyfs.store.probe import RangeAnswer
from lazyfs.store.s3 import ControlPlane
from lazyfs.store.settings import S3Settings
from lazyfs.store.threads import Threads
from lazyfs.store.wire import Wire

if TYPE_CHECKING:
    from lazyfs.store.events import EventSource

log = logging.getLogger("lazyfs.store")


class S3Store:
    """A `Store`; each call is one attempt, counted in `stats` as `s3.requests.<verb>`, `s3.bytes.read|written`.

    `capabilities` is what the probe saw and may be set at any time. Where `conditional_put` is False the endpoint
    accepts a `condition` and ignores it, so that success proves nothing: callers check it before they rely on one.
    """

    def __init__(
        self,
        *,
        control: ControlPlane,
        bulk: BulkReader,
        lister: Lister,
        bodies: BodySender,
        wire: Wire,
        stats: Stats,
        capabilities: Capabilities,
    ) -> None:
        self.capabilities = capabilities
        self._control = control
        self._bulk = bulk
        self._lister = lister
        self._bodies = bodies
        self._wire = wire
        self._stats = stats
        self._warned = False

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
        self._stats.add("s3.requests.list")
        return await self._lister.list_page(
            prefix, delimiter=delimiter, start_after=start_after, token=token, limit=limit
        )

    async def head(self, key: str) -> ObjectInfo:
        """See Store.head."""
        self._stats.add("s3.requests.head")
        return await self._control.head(key)

    async def get_range(self, oid: ObjectId, span: Range) -> Buffer:
        """See Store.get_range. Falls back to boto3 for keys and endpoints that obstore cannot serve."""
        self._stats.add("s3.requests.get")
        body = await self._read(oid, span)
        self._stats.add("s3.bytes.read", len(body))
        return body

    async def get_any(self, key: str, *, limit_bytes: int) -> Buffer:
        """See Blobs.get_any."""
        self._stats.add("s3.requests.get")
        body = await self._bulk.get_any(key, limit_bytes=limit_bytes)
        self._stats.add("s3.bytes.read", len(body))
        return body

    @property
    def credentials_version(self) -> int:
        """See probe.Renewable."""
        return self._control.credentials_version

    async def renew_credentials(self, version: int) -> bool:
        """See probe.Renewable."""
        return await self._control.renew_credentials(version)

    async def range_answer(self, key: str, span: Range, if_match: str) -> RangeAnswer:
        """See probe.Renewable."""
        self._stats.add("s3.requests.get")
        return await self._control.range_answer(key, span, if_match)

    async def put(
        self, key: str, body: Buffer, *, options: PutOptions = DEFAULT_PUT, condition: Condition = ANY
    ) -> str:
        """See Store.put."""
        self._stats.add("s3.requests.put")
        sender = self._bodies if self._bodies.accepts(key) else self._control
        etag = await sender.put(key, body, options=options, condition=condition)
        self._stats.add("s3.bytes.written", len(body))
        return etag

    async def create_upload(self, key: str, *, options: PutOptions = DEFAULT_PUT) -> Upload:
        """See Store.create_upload."""
        self._stats.add("s3.requests.create_upload")
        return await self._control.create_upload(key, options=options)

    async def upload_part(self, upload: Upload, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""
        self._stats.add("s3.requests.upload_part")
        sender = self._bodies if self._bodies.accepts(upload.key) else self._control
        part = await sender.upload_part(upload, number, body)
        self._stats.add("s3.bytes.written", len(body))
        return part

    async def complete_upload(self, upload: Upload, parts: Sequence[Part], *, condition: Condition = ANY) -> str:
        """See Store.complete_upload."""
        self._stats.add("s3.requests.complete_upload")
        return await self._control.complete_upload(upload, parts, condition=condition)

    async def abort_upload(self, upload: Upload) -> None:
        """See Store.abort_upload."""
        self._stats.add("s3.requests.abort_upload")
        await self._control.abort_upload(upload)

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        """See Store.list_uploads."""
        self._stats.add("s3.requests.list_uploads")
        return await self._control.list_uploads(prefix)

    async def copy_part(self, upload: Upload, number: int, source: ObjectId, span: Range) -> Part:
        """See Store.copy_part."""
        self._stats.add("s3.requests.copy_part")
        return await self._control.copy_part(upload, number, source, span)

    async def copy(self, source: ObjectId, key: str) -> str:
        """See Store.copy."""
        self._stats.add("s3.requests.copy")
        return await self._control.copy(source, key)

    async def rename(self, source: ObjectId, key: str, *, token: str) -> str:
        """See Store.rename."""
        self._stats.add("s3.requests.rename")
        self._stats.add("s3.requests.head")
        return await self._control.rename(source, key, token=token)

    async def set_metadata(self, oid: ObjectId, changes: Mapping[str, str | None]) -> str:
        """See Store.set_metadata."""
        self._stats.add("s3.requests.head")
        self._stats.add("s3.requests.copy")
        return await self._control.set_metadata(oid, changes)

    async def delete(self, key: str) -> None:
        """See Store.delete."""
        self._stats.add("s3.requests.delete")
        await self._control.delete(key)

    def events(self, spec: str, settings: S3Settings, *, prefix: str) -> EventSource:
        """Where changes below `prefix` are told: `minio` or `sqs:URL`. UsageError."""
        from lazyfs.store.events import open_events  # noqa: PLC0415 - the SDK takes 0.1 s to import, and few need it

        return open_events(spec, settings=settings, control=self._control, prefix=prefix, stats=self._stats)

    async def aclose(self) -> None:
        """See Store.aclose."""
        self._control.close()
        self._wire.close()
        await trio.lowlevel.checkpoint()

    async def _read(self, oid: ObjectId, span: Range) -> Buffer:
        if not self.capabilities.range_206 or not self._bulk.accepts(oid.key):
            return await self._control.get_range(oid, span)
        try:
            return await self._bulk.get_range(oid, span)
        except NotSupportedByStoreError as error:
            # Not remembered: a proxy may answer one object so and the next one right. The probe decides for good.
            if not self._warned:
                self._warned = True
                log.warning("reading through boto3, which is slower: %s", error)
            self._stats.add("s3.requests.get")
            return await self._control.get_range(oid, span)


def open_s3_store(settings: S3Settings, *, stats: Stats, capabilities: Capabilities | None = None) -> S3Store:
    """The bucket of `settings`; no request is made. Close it with `aclose`.

    Raises UsageError for settings that make no sense, AccessDeniedError if credentials are needed and there are none.
    """
    control = ControlPlane(settings)
    if not settings.no_sign_request:
        control.credentials()
    wire = Wire(settings, control)
    return S3Store(
        control=control,
        bulk=BulkReader(settings, control, limiter=trio.CapacityLimiter(settings.bulk_connections)),
        lister=Lister(control, wire, Threads(settings.max_connections, deadline_s=settings.request_timeout_s)),
        bodies=BodySender(
            settings, control, wire, Threads(settings.max_connections, deadline_s=settings.request_timeout_s)
        ),
        wire=wire,
        stats=stats,
        capabilities=capabilities or Capabilities(),
    )
