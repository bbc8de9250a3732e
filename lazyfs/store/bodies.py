"""Bodies that go up: PutObject and UploadPart, signed by botocore and sent by urllib3.

Through the SDK a small PUT costs 1.4 ms of CPU and a part over plain http 1 s/GB, because its signature hashes the body
there; so it costs 0.7 ms, and nothing for the size but the CRC32C that goes along. The bucket must have been asked
for through the SDK before: redirects to another region are its business.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from lazyfs.core.errors import TransientStoreError
from lazyfs.core.types import ANY, Buffer, Condition, Part, Upload
from lazyfs.store.answers import absent_is_not_this_version
from lazyfs.store.base import DEFAULT_PUT, PutOptions
from lazyfs.store.checksum import crc32c
from lazyfs.store.s3 import ControlPlane
from lazyfs.store.sdk import sign, translated
from lazyfs.store.settings import S3Settings
from lazyfs.store.threads import Threads
from lazyfs.store.wire import Wire


class BodySender:
    """Sends bodies to the bucket of `settings`, as the user of `control`."""

    def __init__(self, settings: S3Settings, control: ControlPlane, wire: Wire, threads: Threads) -> None:
        self._settings = settings
        self._control = control
        self._wire = wire
        self._threads = threads

    def accepts(self, key: str) -> bool:
        """Whether the SDK is not needed: for the sessions of directory buckets and for ARNs it is, and urllib3 would
        tidy up `a/../b`."""
        is_plain = not self._settings.is_directory_bucket and ":" not in self._settings.bucket
        return is_plain and not {".", ".."} & set(key.split("/"))

    async def put(
        self, key: str, body: Buffer, *, options: PutOptions = DEFAULT_PUT, condition: Condition = ANY
    ) -> str:
        """See Store.put."""

        def send() -> str:
            headers = _creation(options) | _conditions(condition) | self._encryption() | self._checksum(body)
            return self._send(what, key, {}, headers, body)

        what = f"PUT {key!r}"
        with absent_is_not_this_version(condition):
            return await self._threads.run(what, send, body_bytes=len(body))

    async def upload_part(self, upload: Upload, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""

        def send() -> Part:
            checksum = self._checksum(body)
            query = {"partNumber": str(number), "uploadId": upload.upload_id}
            etag = self._send(what, upload.key, query, checksum, body)
            return Part(number, etag, len(body), checksum.get("x-amz-checksum-crc32c", ""))

        what = f"upload part {number} of {upload.key!r}"
        return await self._threads.run(what, send, body_bytes=len(body))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _send(self, what: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: Buffer) -> str:
        with translated(what):
            url = f"{self._control.bucket_url}{quote(key, safe='/~')}"
            if query:
                url += "?" + "&".join(f"{name}={quote(value, safe='~')}" for name, value in query.items())
            signed = {**headers, **self._control.signed_headers}
            if not self._settings.no_sign_request:
                signed = sign("PUT", url, signed, self._control.credentials(), self._control.region)
        etag: str = self._wire.send("PUT", url, headers=signed, what=what, body=body).headers.get("ETag", "").strip('"')
        if not etag and not key.endswith("/"):  # the gateway gives markers none
            raise TransientStoreError(f"{what}: the answer lacks ETag")
        return etag

    def _checksum(self, body: Buffer) -> dict[str, str]:
        return {} if self._settings.checksum == "none" else {"x-amz-checksum-crc32c": crc32c(body)}

    def _encryption(self) -> dict[str, str]:
        found = {
            "x-amz-server-side-encryption": self._settings.sse,
            "x-amz-server-side-encryption-aws-kms-key-id": self._settings.sse_kms_key_id,
        }
        return {name: value for name, value in found.items() if value}


def _creation(options: PutOptions) -> dict[str, str]:
    headers = {f"x-amz-meta-{name}": value for name, value in options.metadata.items()}
    if options.storage_class:
        headers["x-amz-storage-class"] = options.storage_class
    return {"Content-Type": options.content_type, **headers}


def _conditions(condition: Condition) -> dict[str, str]:
    if condition.absent:
        return {"If-None-Match": "*"}
    return {} if condition.etag is None else {"If-Match": f'"{condition.etag}"'}
