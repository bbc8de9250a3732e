"""The seam to object storage: one Protocol, a verb a method.

Every implementation keeps the same contract (tests/store/contract.py runs against each):

- errors are `core.errors` only, never an SDK's;
- each call makes exactly one attempt and has a deadline of its own; `retrying.Retrying` is the only retry loop;
- cancelling a call returns at once; what a worker thread still does is thrown away;
- keys are any string that S3 allows and go out and come back unchanged;
- ETags are without quotes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lazyfs.core.types import ANY, Buffer, Condition, ListPage, ObjectId, ObjectInfo, Part, Range, Upload


@dataclass(frozen=True, slots=True)
class PutOptions:
    """What an object is created with besides its bytes."""

    content_type: str = "application/octet-stream"
    metadata: Mapping[str, str] = field(default_factory=dict)
    storage_class: str | None = None


DEFAULT_PUT = PutOptions()


class Blobs(Protocol):
    """A bucket as a place of values that check themselves: whichever version is there will do. Raises StoreError."""

    async def get_any(self, key: str, *, limit_bytes: int) -> Buffer:
        """The whole object as it is now; empty if it is larger than `limit_bytes`. NotFoundError if there is none."""
        ...

    async def put(self, key: str, body: Buffer) -> str:
        """See Store.put."""
        ...

    async def delete(self, key: str) -> None:
        """See Store.delete."""
        ...

    async def aclose(self) -> None:
        """See Store.aclose."""
        ...


class Store(Protocol):
    """A bucket. All methods raise `StoreError` and its children, and nothing else."""

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str = "",
        start_after: str = "",
        token: str | None = None,
        limit: int = 1000,
    ) -> ListPage:
        """One page of the keys below `prefix`, at most `limit` of keys and prefixes together.

        With `delimiter` "/" deeper keys are folded into `prefixes`. `token` is the previous page's `next_token`.
        """
        ...

    async def head(self, key: str) -> ObjectInfo:
        """What the object is now, its user metadata included. NotFoundError if there is none."""
        ...

    async def get_range(self, oid: ObjectId, span: Range) -> Buffer:
        """Exactly the bytes `span` of exactly this version.

        `span` is not empty and lies inside the object. PreconditionFailedError if the key holds another version,
        NotFoundError if none, TruncatedError if the body came short.
        """
        ...

    async def put(
        self, key: str, body: Buffer, *, options: PutOptions = DEFAULT_PUT, condition: Condition = ANY
    ) -> str:
        """Create or replace the object in one request, checksummed; its ETag.

        PreconditionFailedError if `condition` does not hold (where the endpoint honours it).
        """
        ...

    async def create_upload(self, key: str, *, options: PutOptions = DEFAULT_PUT) -> Upload:
        """Begin a multipart upload."""
        ...

    async def upload_part(self, upload: Upload, number: int, body: Buffer) -> Part:
        """Send part `number` (from 1), checksummed; repeating a number replaces it. NoSuchUploadError if gone."""
        ...

    async def copy_part(self, upload: Upload, number: int, source: ObjectId, span: Range) -> Part:
        """As `upload_part`, of bytes of another object, which the server copies. PreconditionFailedError if that is
        another version, NotFoundError if it is gone, NoSuchUploadError."""
        ...

    async def complete_upload(self, upload: Upload, parts: Sequence[Part], *, condition: Condition = ANY) -> str:
        """Make the object appear, whole; its ETag. NoSuchUploadError, PreconditionFailedError."""
        ...

    async def abort_upload(self, upload: Upload) -> None:
        """Throw the parts away. No error if the upload is already gone."""
        ...

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        """The multipart uploads in progress below `prefix`, at most one page of them."""
        ...

    async def copy(self, source: ObjectId, key: str) -> str:
        """Copy this version, metadata included, to `key` on the server; the new ETag. At most 5 GB, the limit of S3 for
        one request, and as much as the server copies before the request times out: see `copy_part`."""
        ...

    async def rename(self, source: ObjectId, key: str, *, token: str) -> str:
        """Give this version the key `key` in one step, replacing what is there; its ETag there.

        Only directory buckets can: NotSupportedByStoreError elsewhere. `token` is the same in every attempt at one
        rename: repeating it is no error. PreconditionFailedError, NotFoundError: as for `copy`.
        """
        ...

    async def set_metadata(self, oid: ObjectId, changes: Mapping[str, str | None]) -> str:
        """Change user metadata of this version, None takes a key away; its ETag afterwards, which may be another.

        All else stays: bytes, content type, the other keys, storage class. Not atomic with the look at what there is
        before, but PreconditionFailedError if the object is another version, NotFoundError if there is none.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove the object. No error if there is none."""
        ...

    async def aclose(self) -> None:
        """Let go of connections. No call is in progress or follows."""
        ...
