"""obstore: range GETs without Python's HTTP stack. The only file that says obstore.

Every answer is checked against what was asked: the ETag must be the version's and the length the span's, whether the
server honoured If-Match or not. Bytes are handed on as a view of obstore's own buffer, never copied.

obstore refuses some keys (`accepts` tells which) and endpoints that answer a range with 200; both are read through
`s3.ControlPlane.get_range` by `remote.S3Store`.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
import obstore.exceptions
import trio
from obstore.store import S3Store as ObstoreStore

from lazyfs.core.errors import (
    AccessDeniedError,
    NotSupportedByStoreError,
    PreconditionFailedError,
    StoreError,
    TransientStoreError,
    TruncatedError,
)
from lazyfs.core.types import Buffer, ObjectId, Range
from lazyfs.store.answers import UNTRUSTED, store_error, timed_out, unreachable
from lazyfs.store.s3 import ControlPlane
from lazyfs.store.settings import Credentials, S3Settings

_CREDENTIALS_TTL = datetime.timedelta(minutes=5)
# obstore's errors tell their cause only in their text, which the debug form of Rust's error follows.
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})</Message>")
_NO_KEYS = "External AWS credential provider"
_KIND = re.compile(r"kind: (\w+)")
_REFUSED = re.compile(r"[\x00-\x1f\x7f]|(?:^|/)(?:\.{0,2})(?:/|$)")


class BulkReader:
    """Reads ranges of versions. Needs a ControlPlane only for its endpoint and its credentials."""

    def __init__(self, settings: S3Settings, control: ControlPlane, *, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._provider = _Provider(control.credentials)
        self._settings = settings
        self._control = control
        self._version = control.credentials_version
        self._store = self._make()

    def _make(self) -> ObstoreStore:
        provider: Any = None if self._settings.no_sign_request else self._provider
        return ObstoreStore(
            self._settings.bucket,
            config=_config(self._settings, self._control),
            client_options=_client_options(self._settings, self._control),
            retry_config={"max_retries": 0, "retry_timeout": datetime.timedelta(0)},
            credential_provider=provider,
        )

    def _current(self) -> ObstoreStore:
        """The client, made anew when the credentials are others: it keeps for minutes what the provider told."""
        version = self._control.credentials_version
        if version != self._version:
            self._store, self._version = self._make(), version
        return self._store

    @staticmethod
    def accepts(key: str) -> bool:
        r"""Whether obstore sends this very key: no control characters, no empty, `.` or `..` component.

        Everything else arrives unchanged, `%2F`, `+`, `\` and emoji included (seen against moto and the gateway).
        """
        return _REFUSED.search(key) is None and _is_utf8(key)

    async def get_range(self, oid: ObjectId, span: Range) -> Buffer:
        """See Store.get_range. NotSupportedByStoreError if the endpoint answers with 200 instead of 206."""
        read = functools.partial(self._read, oid, span)
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=self._limiter)

    async def get_any(self, key: str, *, limit_bytes: int) -> Buffer:
        """See Blobs.get_any."""
        read = functools.partial(self._read_any, key, limit_bytes)
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=self._limiter)

    def _read_any(self, key: str, limit_bytes: int) -> Buffer:
        with self._translated(f"GET {key!r}"):
            answer = obstore.get(self._current(), key)
            # What is too large is known before its body is read.
            return memoryview(answer.bytes()) if answer.meta["size"] <= limit_bytes else b""

    def _read(self, oid: ObjectId, span: Range) -> Buffer:
        what = f"GET {oid.key!r}"
        options: Any = {"range": (span.start, span.stop)}
        if oid.etag:
            options["if_match"] = f'"{oid.etag}"'
        with self._translated(what):
            answer = obstore.get(self._current(), oid.key, options=options)
            etag = (answer.meta["e_tag"] or "").strip('"')
            if oid.etag and not etag:
                raise TransientStoreError(f"{what}: the answer lacks ETag")
            if etag != oid.etag:
                raise PreconditionFailedError(f"{what}: the object is another version now")
            body = memoryview(answer.bytes())
        if len(body) != span.size:
            raise TruncatedError(f"{what}: {len(body)} of {span.size} bytes arrived")
        return body

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            failure = self._provider.failure  # another thread may clear it meanwhile
            if failure is not None and _NO_KEYS in str(error):
                raise failure from None
            raise translate(error, what) from None


def translate(error: Exception, what: str) -> StoreError:
    """Our error for one of obstore's."""
    text = str(error)
    status = _STATUS.search(text)
    if status is not None:
        code, message = _CODE.search(text), _MESSAGE.search(text)
        return store_error(int(status[1]), code[1] if code else "", message[1] if message else "", what)
    if "BareRedirect" in text:  # obstore keeps neither its status nor its body
        return store_error(301, "PermanentRedirect", "", what)
    if "NotPartial" in text:
        return NotSupportedByStoreError(f"{what}: the endpoint answers a range with the whole object")
    if "UnexpectedRange" in text:
        return TruncatedError(f"{what}: another range arrived than was asked for")
    if isinstance(error, obstore.exceptions.UnauthenticatedError | obstore.exceptions.PermissionDeniedError):
        return AccessDeniedError(f"{what}: the credentials cannot be used")
    if isinstance(error, ValueError):
        return NotSupportedByStoreError(f"{what}: obstore refuses this key")
    return _broken(text, what)


def _broken(text: str, what: str) -> StoreError:
    """The error for a request that got no answer, or not all of it; `text` is Rust's debug form."""
    kinds = set(_KIND.findall(text))
    if "Timeout" in kinds or "TimedOut" in text:
        return timed_out(what)
    if "Interrupted" in kinds or "IncompleteBody" in text:
        return TruncatedError(f"{what}: the connection broke while the answer was read")
    reasons = {"Connection refused": "connection refused", "dns error": "no such host", "InvalidCertificate": UNTRUSTED}
    reason = next((why for sign, why in reasons.items() if sign in text), "connection lost")
    return unreachable(what, f"no connection ({reason})")


def _config(settings: S3Settings, control: ControlPlane) -> Any:
    """Everything is said explicitly: obstore would otherwise look into the environment by itself."""
    config: dict[str, Any] = {
        "region": control.region,
        "virtual_hosted_style_request": not control.path_style,
        "skip_signature": settings.no_sign_request,
        "request_payer": settings.requester_pays,
    }
    if settings.is_directory_bucket:
        return config | {"s3_express": True}  # the zone's endpoint is derived from the bucket's name
    url = control.endpoint_url
    if not control.path_style:
        parts = urlsplit(url)
        url = parts._replace(netloc=f"{settings.bucket}.{parts.netloc}").geturl()
    return config | {"endpoint": url}


def _client_options(settings: S3Settings, control: ControlPlane) -> Any:
    options: dict[str, Any] = {
        "allow_http": control.endpoint_url.startswith("http://"),
        "connect_timeout": datetime.timedelta(seconds=settings.connect_timeout_s),
        "read_timeout": datetime.timedelta(seconds=settings.read_timeout_s),
        "timeout": datetime.timedelta(seconds=settings.request_timeout_s),
        "pool_max_idle_per_host": str(settings.bulk_connections),
        "user_agent": "lazyfs",
    }
    if settings.expected_bucket_owner:
        options["default_headers"] = {"x-amz-expected-bucket-owner": settings.expected_bucket_owner}
    if control.ca_bundle:
        options["root_certificate"] = Path(control.ca_bundle).read_bytes()
    return options


class _Provider:
    """What obstore calls, in a worker thread, when it needs keys. It asks again after five minutes.

    obstore turns what a provider raises into text, so the error itself is kept here.
    """

    def __init__(self, credentials: Callable[[], Credentials]) -> None:
        self._credentials = credentials
        self.failure: StoreError | None = None

    def __call__(self) -> dict[str, Any]:
        try:
            found = self._credentials()
        except StoreError as error:
            self.failure = error
            raise
        self.failure = None
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.datetime.now(datetime.UTC) + _CREDENTIALS_TTL,
        }


def _is_utf8(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True
