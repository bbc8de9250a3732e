"""The SDK: how its client is made, and what its errors mean. Beside store.s3 the only file that says botocore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import botocore.exceptions as sdk
import urllib3.exceptions
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials

from lazyfs.core.errors import AccessDeniedError, LazyfsError, StoreError, TruncatedError
from lazyfs.store.answers import NO_CREDENTIALS, UNTRUSTED, one_line, store_error, timed_out, unreachable
from lazyfs.store.settings import Credentials, S3Settings, is_aws

DEFAULT_REGION = "us-east-1"
PIECE_BYTES = 64 * 1024
"""Of a body, sent at a time: what a line must carry within the connection's timeout. As one piece, urllib3 would give
the whole body no more time than that: a part of 8 MiB failed on every line of less than 1.6 MB/s, however often it was
tried."""


def make_client(session: Any, settings: S3Settings) -> Any:
    """A client in virtual-host style for AWS, in path style for everybody else unless told otherwise."""

    def make(style: str) -> Any:
        options: Any = {"addressing_style": style, "payload_signing_enabled": False}
        signature: Any = UNSIGNED if settings.no_sign_request else "s3v4"
        if settings.is_directory_bucket and not settings.no_sign_request:
            signature = None  # botocore picks the session scheme of S3 Express by itself
        config = Config(
            s3=options,
            signature_version=signature,
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            max_pool_connections=settings.max_connections,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # Validation would refuse memoryviews and wrap bytes in a file, which is then sent in 16 KiB pieces and
            # with Expect: 100-continue, a round trip more.
            parameter_validation=False,
            user_agent_extra="lazyfs",
        )
        region = None if session.region_name or settings.endpoint_url is None else DEFAULT_REGION
        client = session.client("s3", endpoint_url=settings.endpoint_url, region_name=region, config=config)
        client.meta.events.register("before-send.s3", _send_in_pieces)
        client.meta.events.register("before-call.s3", _follow_no_redirect)
        return client

    if settings.force_path_style is not None:
        return make("path" if settings.force_path_style else "virtual")
    if settings.endpoint_url is not None:
        # "auto" means path style to botocore as soon as an endpoint is given, even one of AWS.
        return make("virtual" if is_aws(settings.endpoint_url) and "." not in settings.bucket else "path")
    # "auto" is virtual too, but signs URLs for the endpoint that knows no region and redirects those of new buckets.
    # No certificate covers a host name with a dotted bucket in front; other names that are no host's are ARNs.
    client = make("auto" if {".", ":"} & set(settings.bucket) or settings.is_directory_bucket else "virtual")
    if is_aws(client.meta.endpoint_url):
        return client
    client.close()  # the endpoint came from the environment or the profile
    return make("path")


def sign(method: str, url: str, headers: Mapping[str, str], credentials: Credentials, region: str) -> dict[str, str]:
    """The headers with those that a signature needs, which does not cover the body: its checksum may be among them."""
    request = AWSRequest(method, url, headers=dict(headers))
    keys = ReadOnlyCredentials(credentials.access_key, credentials.secret_key, credentials.token)
    _BodyUnsigned(keys, "s3", region).add_auth(request)
    return dict(request.headers.items())


class _BodyUnsigned(S3SigV4Auth):  # type: ignore[misc]
    def payload(self, request: Any) -> str:
        return "UNSIGNED-PAYLOAD"


def _follow_no_redirect(params: Any, **_: Any) -> None:
    """Tell botocore that it has followed one. It would look for the bucket's region by a HEAD of its own, which nobody
    counts, and whose redirect it follows in turn, without end. LIST follows none either: --region is to be right."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


def _send_in_pieces(request: Any, **_: Any) -> None:
    if isinstance(request.body, memoryview):
        request.body = pieces(request.body)


def pieces(body: memoryview) -> Any:
    """Views of the body, or the body if it is small: as urllib3 sends it, whose types speak of bytes only, each with a
    timeout of its own. Its length must be told besides."""
    if body.nbytes <= PIECE_BYTES:
        return body
    body = body.cast("B")
    return tuple(body[start : start + PIECE_BYTES] for start in range(0, len(body), PIECE_BYTES))


class translated:  # noqa: N801 - reads as a verb: `with translated("HEAD ..."):`
    """Whatever the SDK raises inside leaves as one of `core.errors`."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, LazyfsError):
            translated = translate(error, self._what)
            if translated is not None:
                raise translated from None


def translate(error: Exception, what: str) -> StoreError | None:
    """Our error for one of botocore or of urllib3 below it; None for anything that is not theirs."""
    match error:
        case sdk.ClientError():
            meta = error.response.get("ResponseMetadata", {})
            told: Mapping[str, Any] = error.response.get("Error", {})
            region = meta.get("HTTPHeaders", {}).get("x-amz-bucket-region") or told.get("Region", "")
            return store_error(
                int(meta.get("HTTPStatusCode", 0)), str(told.get("Code", "")), str(told.get("Message", "")), what,
                region=str(region),
            )  # fmt: skip
        case sdk.NoCredentialsError() | sdk.PartialCredentialsError():
            return AccessDeniedError(f"{what}: {NO_CREDENTIALS}")
        case sdk.TokenRetrievalError() | sdk.SSOError() | sdk.CredentialRetrievalError():
            return AccessDeniedError(f"{what}: {one_line(str(error))}")
        case sdk.ConnectTimeoutError() | sdk.ReadTimeoutError() | urllib3.exceptions.TimeoutError():
            return timed_out(what)
        case sdk.IncompleteReadError() | sdk.ResponseStreamingError() | urllib3.exceptions.ProtocolError():
            return TruncatedError(f"{what}: the connection broke while the answer was read")
        case sdk.HTTPClientError() | sdk.ConnectionError() | urllib3.exceptions.HTTPError() | OSError():
            return unreachable(what, _cause(error))
        case sdk.BotoCoreError() | UnicodeEncodeError():
            return StoreError(f"{what}: {one_line(str(error))}")
    return None


def _cause(error: Exception) -> str:
    """Why there is no connection, without the URL that SDK messages repeat."""
    wrapped = getattr(error, "kwargs", {}).get("error", error)
    if "certificate verify failed" in str(wrapped):
        return f"no connection ({UNTRUSTED})"
    text = str(wrapped).rpartition(": ")[2] or type(wrapped).__name__
    return f"no connection ({text})"
