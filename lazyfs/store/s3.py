"""boto3: sessions, credentials, and every verb that is not bulk reading or listing. The only file that says boto3.

- One attempt a call (`total_max_attempts=1`); `retrying.Retrying` is the only retry loop.
- Bodies are sent as views, neither copied nor hashed for the signature: the payload is unsigned and a CRC32C of our
  own, computed once, goes along as `x-amz-checksum-crc32c`. Endpoints that know no checksums ignore the header.
- SDK threads cannot be cancelled: a cancelled call returns at once and its thread ends by the timeouts.
- An answer that lacks what the verb promises (a portal's page, half of an answer) is no answer: it is asked for again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote_plus, urlsplit

import boto3
import botocore.exceptions as sdk
from botocore.config import Config

from lazyfs.core.errors import (
    AccessDeniedError,
    NoSuchUploadError,
    NotFoundError,
    NotSupportedByStoreError,
    PreconditionFailedError,
    TransientStoreError,
    TruncatedError,
    UsageError,
)
from lazyfs.core.types import ANY, Buffer, Condition, ObjectId, ObjectInfo, Part, Range, Upload
from lazyfs.store.answers import NO_CREDENTIALS, absent_is_not_this_version, nanoseconds, one_line, timed_out
from lazyfs.store.base import DEFAULT_PUT, PutOptions
from lazyfs.store.checksum import crc32c, crc32c_of_parts
from lazyfs.store.keys import Keys
from lazyfs.store.metadata import changed, replacing
from lazyfs.store.probe import RangeAnswer
from lazyfs.store.sdk import DEFAULT_REGION, make_client, translate, translated
from lazyfs.store.settings import Credentials, S3Settings, is_aws
from lazyfs.store.threads import Threads

__all__ = ["ControlPlane", "Credentials", "S3Settings", "translate"]

_PRESIGN_S = 300
_PIECE = 256 * 1024
"""Read at a time, so that a slow body is noticed; one that comes byte by byte is by whoever waits for the thread."""


class ControlPlane:
    """HEAD, PUT, multipart, copy, delete, and a range GET for what `bulk` cannot serve.

    Construction does no request. Raises UsageError for settings that boto3 refuses, such as an unknown profile.
    """

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._threads = Threads(settings.max_connections, deadline_s=settings.request_timeout_s)
        self._keys = Keys()
        self._session, self._client = self._connect()
        self._common: dict[str, Any] = {"Bucket": settings.bucket}
        if settings.requester_pays:
            self._common["RequestPayer"] = "requester"
        if settings.expected_bucket_owner:
            self._common["ExpectedBucketOwner"] = settings.expected_bucket_owner

    def _connect(self) -> tuple[Any, Any]:
        try:
            session = boto3.Session(profile_name=self._settings.profile, region_name=self._settings.region)
            return session, make_client(session, self._settings)
        except (sdk.BotoCoreError, ValueError) as error:
            raise UsageError(one_line(str(error))) from None

    # -- what `bulk` and `listing` need to speak to the same endpoint as the same user -------------------------

    @property
    def endpoint_url(self) -> str:
        """Where the client sends its requests, without the bucket."""
        url: str = self._client.meta.endpoint_url
        return url

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        region: str | None = self._client.meta.region_name
        return region if region and region != "aws-global" else DEFAULT_REGION

    @property
    def path_style(self) -> bool:
        """Whether the bucket is in the path and not in the host name."""
        style = (self._client.meta.config.s3 or {}).get("addressing_style")
        # No certificate covers a host name with a dotted bucket in front, so botocore's "auto" avoids it.
        return style == "path" or (style == "auto" and "." in self._settings.bucket)

    @property
    def ca_bundle(self) -> str | None:
        """The file of trusted certificates that the user configured for AWS tools, if any."""
        found = self._session._session.get_config_variable("ca_bundle")  # noqa: SLF001 - boto3 has no public way
        return str(found) if found else None

    def credentials(self) -> Credentials:
        """The keys, refreshed if they were about to expire. May block. AccessDeniedError if there are none."""
        with translated("find credentials"):
            found = self._session.get_credentials()
            if found is None:
                raise AccessDeniedError(NO_CREDENTIALS)
            frozen = found.get_frozen_credentials()
            return Credentials(str(frozen.access_key), str(frozen.secret_key), frozen.token)

    @property
    def credentials_version(self) -> int:
        """See probe.Probeable."""
        return self._keys.version

    async def renew_credentials(self, version: int) -> bool:
        """See probe.Probeable. A new session reads files and asks processes that an old one never looks at again."""
        return await self._threads.run(
            "find credentials", functools.partial(self._keys.renew, version, self._reconnect)
        )

    def _reconnect(self) -> bool:
        before = self.credentials()
        session, client = self._connect()
        with translated("find credentials"):
            found = session.get_credentials()
            if found is None or found.get_frozen_credentials()[:3] == (
                before.access_key,
                before.secret_key,
                before.token,
            ):
                client.close()
                return False
        self._session, self._client = session, client  # the old one ends with the last request that it has
        return True

    def presigned_list_url(self, params: Mapping[str, Any]) -> str:
        """A signed URL for ListObjectsV2; to be sent with `signed_headers`. May block to refresh credentials."""
        with translated("LIST"):
            url: str = self._client.generate_presigned_url(
                "list_objects_v2", Params={**self._common, **params}, ExpiresIn=_PRESIGN_S
            )
            return url

    @functools.cached_property
    def bucket_url(self) -> str:
        """Where a key is appended, percent-encoded. May block to find credentials."""
        with translated("find the bucket's address"):
            url: str = self._client.generate_presigned_url("head_object", Params={**self._common, "Key": "k"})
            return url.partition("?")[0].removesuffix("k")

    @property
    def signed_headers(self) -> dict[str, str]:
        """Headers that are signed and sent with every request."""
        headers: dict[str, str] = {}
        if self._settings.requester_pays:
            headers["x-amz-request-payer"] = "requester"
        if self._settings.expected_bucket_owner:
            headers["x-amz-expected-bucket-owner"] = self._settings.expected_bucket_owner
        return headers

    def sqs_client(self, queue_url: str) -> Any:
        """A client for the queue at this URL, as the same user; `translate` tells what it raises. UsageError."""
        host = urlsplit(queue_url).netloc
        # https://sqs.REGION.amazonaws.com/ACCOUNT/NAME
        region = host.split(".")[1] if is_aws(queue_url) and host.startswith("sqs.") else self.region
        endpoint = None if is_aws(queue_url) else f"{urlsplit(queue_url).scheme}://{host}"
        config = Config(
            connect_timeout=self._settings.connect_timeout_s,
            read_timeout=self._settings.read_timeout_s,
            retries={"total_max_attempts": 1, "mode": "standard"},
            user_agent_extra="lazyfs",
        )
        try:
            return self._session.client("sqs", endpoint_url=endpoint, region_name=region, config=config)
        except (sdk.BotoCoreError, ValueError) as error:
            raise UsageError(one_line(str(error))) from None

    # -- the verbs; see base.Store ------------------------------------------------------------------------------

    async def head(self, key: str) -> ObjectInfo:
        """See Store.head. A missing bucket looks like a missing key here: the answer to HEAD has no body."""
        what = f"HEAD {key!r}"
        answer = await self._call(what, "head_object", Key=key)
        return ObjectInfo(
            key=key,
            etag=_etag(answer),
            size=_told(answer, "ContentLength", what),
            mtime_ns=nanoseconds(_told(answer, "LastModified", what)),
            storage_class=answer.get("StorageClass", ""),
            metadata=answer.get("Metadata", {}),
            content_type=answer.get("ContentType", ""),
        )

    async def get_range(self, oid: ObjectId, span: Range) -> Buffer:
        """See Store.get_range; for keys and endpoints that `bulk` cannot serve."""
        return await self._threads.run(f"GET {oid.key!r}", functools.partial(self._get_range, oid, span))

    async def range_answer(self, key: str, span: Range, if_match: str) -> RangeAnswer:
        """See probe.Probeable."""
        return await self._threads.run(f"GET {key!r}", functools.partial(self._range_answer, key, span, if_match))

    async def put(
        self, key: str, body: Buffer, *, options: PutOptions = DEFAULT_PUT, condition: Condition = ANY
    ) -> str:
        """See Store.put."""
        what = f"PUT {key!r}"

        def send() -> str:
            params = {**self._creation(options), **_conditions(condition), **self._checksum(body)}
            answer = self._request(what, "put_object", Key=key, Body=memoryview(body), **params)
            # The gateway gives markers none.
            return _etag(answer) if key.endswith("/") else _told_etag(answer, what)

        with absent_is_not_this_version(condition):
            return await self._threads.run(what, send, body_bytes=len(body))

    async def create_upload(self, key: str, *, options: PutOptions = DEFAULT_PUT) -> Upload:
        """See Store.create_upload."""
        params = self._creation(options)
        if self._settings.checksum != "none":
            # S3 refuses part checksums of another kind than the one that was announced here.
            params |= {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "FULL_OBJECT"}
        what = f"create upload of {key!r}"
        answer = await self._call(what, "create_multipart_upload", Key=key, **params)
        return Upload(key, str(_told(answer, "UploadId", what)))

    async def upload_part(self, upload: Upload, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""
        what = f"upload part {number} of {upload.key!r}"

        def send() -> Part:
            checksum = self._checksum(body)
            params = {**_upload_params(upload), "PartNumber": number, **checksum}
            answer = self._request(what, "upload_part", Body=memoryview(body), **params)
            return Part(number, _told_etag(answer, what), len(body), checksum.get("ChecksumCRC32C", ""))

        return await self._threads.run(what, send, body_bytes=len(body))

    async def complete_upload(self, upload: Upload, parts: Sequence[Part], *, condition: Condition = ANY) -> str:
        """See Store.complete_upload. S3 checks the CRC32C of the whole object, combined from those of the parts."""
        ordered = sorted(parts, key=lambda part: part.number)
        params: dict[str, Any] = dict(_conditions(condition))
        whole = crc32c_of_parts(ordered)
        if whole is not None:
            params |= {"ChecksumCRC32C": whole, "ChecksumType": "FULL_OBJECT"}
        params["MultipartUpload"] = {"Parts": [_part_params(part) for part in ordered]}
        what = f"complete {upload.key!r}"
        with absent_is_not_this_version(condition):
            answer = await self._call(what, "complete_multipart_upload", **_upload_params(upload), **params)
        return _told_etag(answer, what)

    async def abort_upload(self, upload: Upload) -> None:
        """See Store.abort_upload."""
        try:
            await self._call(f"abort {upload.key!r}", "abort_multipart_upload", **_upload_params(upload))
        except (NoSuchUploadError, NotFoundError):
            return

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        """See Store.list_uploads."""
        what = f"list uploads below {prefix!r}"
        answer = await self._call(what, "list_multipart_uploads", Prefix=prefix, EncodingType="url")
        _told(answer, "IsTruncated", what)
        encoded = answer.get("EncodingType") == "url"
        return [
            Upload(
                unquote_plus(found["Key"]) if encoded else found["Key"],
                found["UploadId"],
                nanoseconds(found["Initiated"]) if "Initiated" in found else 0,
            )
            for found in answer.get("Uploads", ())
        ]

    async def copy_part(self, upload: Upload, number: int, source: ObjectId, span: Range) -> Part:
        """See Store.copy_part."""
        params = {**self._copy_source(source), **_upload_params(upload), "PartNumber": number}
        for name in ("ServerSideEncryption", "SSEKMSKeyId"):  # said when the upload was created
            params.pop(name, None)
        what = f"copy part {number} of {source.key!r} to {upload.key!r}"
        answer = await self._call(what, "upload_part_copy", CopySourceRange=_range_header(span), **params)
        result = _told(answer, "CopyPartResult", what)
        return Part(number, _told_etag(result, what), span.size, result.get("ChecksumCRC32C", ""))

    async def copy(self, source: ObjectId, key: str) -> str:
        """See Store.copy."""
        what = f"copy {source.key!r} to {key!r}"
        answer = await self._call(what, "copy_object", Key=key, **self._copy_source(source))
        return _told_etag(_told(answer, "CopyObjectResult", what), what)

    async def rename(self, source: ObjectId, key: str, *, token: str) -> str:
        """See Store.rename. RenameObject tells no ETag, so a HEAD follows; not run against S3 Express."""
        what = f"rename {source.key!r} to {key!r}"
        if not self._settings.is_directory_bucket:
            raise NotSupportedByStoreError(f"{what}: only directory buckets can")
        params = {"RenameSource": quote(source.key), "ClientToken": token}  # the key alone, as Mountpoint sends it
        await self._call(what, "rename_object", Key=key, SourceIfMatch=f'"{source.etag}"', **params)
        return (await self.head(key)).etag

    async def set_metadata(self, oid: ObjectId, changes: Mapping[str, str | None]) -> str:
        """See Store.set_metadata. A HEAD and a copy onto itself, of at most 5 GB; S3 has no other way."""
        what = f"set metadata of {oid.key!r}"
        return await self._threads.run(what, functools.partial(self._set_metadata, what, oid, changes))

    async def delete(self, key: str) -> None:
        """See Store.delete."""
        try:
            await self._call(f"DELETE {key!r}", "delete_object", Key=key)
        except NotFoundError:
            return

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _call(self, what: str, operation: str, **params: Any) -> Any:
        return await self._threads.run(what, functools.partial(self._request, what, operation, **params))

    def _request(self, what: str, operation: str, **params: Any) -> Any:
        with translated(what):
            return getattr(self._client, operation)(**self._common, **params)

    def _set_metadata(self, what: str, oid: ObjectId, changes: Mapping[str, str | None]) -> str:
        now = self._request(f"HEAD {oid.key!r}", "head_object", Key=oid.key)
        if _told_etag(now, what) != oid.etag:
            raise PreconditionFailedError(f"{what}: the object is another version now")
        metadata = changed(now.get("Metadata", {}), changes)
        if metadata == now.get("Metadata", {}):
            return oid.etag
        params = {**replacing(now, metadata), **self._copy_source(oid)}
        answer = self._request(what, "copy_object", Key=oid.key, **params)
        return _told_etag(_told(answer, "CopyObjectResult", what), what)

    def _get_range(self, oid: ObjectId, span: Range) -> Buffer:
        what, deadline = f"GET {oid.key!r}", time.monotonic() + self._settings.request_timeout_s
        params = {"IfMatch": f'"{oid.etag}"'} if oid.etag else {}
        answer = self._request(what, "get_object", Key=oid.key, Range=_range_header(span), **params)
        with translated(what), answer["Body"] as stream:
            etag = _told_etag(answer, what) if oid.etag else _etag(answer)
            if etag != oid.etag:
                raise PreconditionFailedError(f"{what}: the object is another version now")
            sent = answer.get("ContentRange", "")
            if sent and not sent.startswith(f"bytes {span.start}-"):
                raise NotSupportedByStoreError(f"{what}: asked for {_range_header(span)}, got {one_line(sent)}")
            if not sent and span.start != 0:
                raise NotSupportedByStoreError(f"{what}: the endpoint does not serve ranges")
            # The amount is a limit: some endpoints answer with the whole object.
            body = _read(stream, span.size, deadline, what)
        if len(body) != span.size:
            raise TruncatedError(f"{what}: {len(body)} of {span.size} bytes arrived")
        return body

    def _range_answer(self, key: str, span: Range, if_match: str) -> RangeAnswer:
        what = f"GET {key!r}"
        try:
            answer = self._request(what, "get_object", Key=key, Range=_range_header(span), IfMatch=f'"{if_match}"')
        except PreconditionFailedError:
            return RangeAnswer(412, "", 0)
        with translated(what), answer["Body"] as stream:
            size = len(stream.read(span.size + 1))
        return RangeAnswer(answer["ResponseMetadata"]["HTTPStatusCode"], _etag(answer), size)

    def _checksum(self, body: Buffer) -> dict[str, str]:
        if self._settings.checksum == "none":
            return {}
        return {"ChecksumCRC32C": crc32c(body)}

    def _creation(self, options: PutOptions) -> dict[str, Any]:
        params: dict[str, Any] = {"ContentType": options.content_type, "Metadata": dict(options.metadata)}
        if options.storage_class:
            params["StorageClass"] = options.storage_class
        return params | self._encryption()

    def _copy_source(self, source: ObjectId) -> dict[str, Any]:
        params: dict[str, Any] = {"CopySource": {"Bucket": self._settings.bucket, "Key": source.key}}
        params |= {"CopySourceIfMatch": f'"{source.etag}"', **self._encryption()}
        if self._settings.expected_bucket_owner:
            params["ExpectedSourceBucketOwner"] = self._settings.expected_bucket_owner
        return params

    def _encryption(self) -> dict[str, str]:
        params = {"ServerSideEncryption": self._settings.sse, "SSEKMSKeyId": self._settings.sse_kms_key_id}
        return {name: value for name, value in params.items() if value}


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _told(answer: Mapping[str, Any], name: str, what: str) -> Any:
    """The field `name` of an answer. TransientStoreError if it has none: then it is none of S3's."""
    if name not in answer:
        raise TransientStoreError(f"{what}: the answer lacks {name}")
    return answer[name]


def _told_etag(answer: Mapping[str, Any], what: str) -> str:
    _told(answer, "ETag", what)
    return _etag(answer)


def _read(stream: Any, size: int, deadline: float, what: str) -> bytes:
    """Up to `size` bytes of a body, until `deadline` on the monotonic clock. StoreTimeoutError."""
    pieces: list[bytes] = []
    while size > 0 and (piece := stream.read(min(size, _PIECE))):
        pieces.append(piece)
        size -= len(piece)
        if time.monotonic() > deadline:
            raise timed_out(what)
    return b"".join(pieces)


def _range_header(span: Range) -> str:
    return f"bytes={span.start}-{span.stop - 1}"


def _conditions(condition: Condition) -> dict[str, str]:
    if condition.absent:
        return {"IfNoneMatch": "*"}
    return {} if condition.etag is None else {"IfMatch": f'"{condition.etag}"'}


def _upload_params(upload: Upload) -> dict[str, str]:
    return {"Key": upload.key, "UploadId": upload.upload_id}


def _part_params(part: Part) -> dict[str, Any]:
    params: dict[str, Any] = {"PartNumber": part.number, "ETag": f'"{part.etag}"'}
    return params | ({"ChecksumCRC32C": part.checksum} if part.checksum else {})
