"""The one place that says what an endpoint's answer means.

Pure: HTTP status and S3 error code in, one of `core.errors` out. `s3`, `bulk` and `wire` bring what their SDK
knows and raise what this returns. Messages are one line, name the key, and hold nothing but what the server said
in <Code> and <Message>: never an URL, because presigned ones carry a signature.
"""

from __future__ import annotations

import datetime
import re

from lazyfs.core.errors import (
    AccessDeniedError,
    ArchivedError,
    ExpiredCredentialsError,
    NoSuchBucketError,
    NoSuchUploadError,
    NotFoundError,
    NotSupportedByStoreError,
    PreconditionFailedError,
    StoreError,
    StoreTimeoutError,
    ThrottledError,
    TransientStoreError,
    UnreachableError,
)
from lazyfs.core.types import Condition

# Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html; SlowDownRead and SlowDownWrite: MinIO
_BY_CODE: dict[str, type[StoreError]] = {
    "NoSuchKey": NotFoundError,
    "NoSuchBucket": NoSuchBucketError,
    "NoSuchUpload": NoSuchUploadError,
    "InvalidObjectState": ArchivedError,
    "PreconditionFailed": PreconditionFailedError,
    # The range lies inside the version that we asked for, so the object is a shorter one.
    "InvalidRange": PreconditionFailedError,
    # "Try again", says S3 of both; a completion is the exception, see `store_error`.
    "ConditionalRequestConflict": TransientStoreError,
    "OperationAborted": TransientStoreError,
    "InternalError": TransientStoreError,
    "BadDigest": TransientStoreError,
    "XAmzContentChecksumMismatch": TransientStoreError,
    "IncompleteBody": TransientStoreError,
    "RequestTimeout": StoreTimeoutError,
    "SlowDown": ThrottledError,
    "SlowDownRead": ThrottledError,
    "SlowDownWrite": ThrottledError,
    "Throttling": ThrottledError,
    "ThrottlingException": ThrottledError,
    "RequestLimitExceeded": ThrottledError,
    "TooManyRequests": ThrottledError,
    "ServiceUnavailable": ThrottledError,
    "AccessDenied": AccessDeniedError,
    "InvalidAccessKeyId": ExpiredCredentialsError,  # a key that was rotated
    "SignatureDoesNotMatch": AccessDeniedError,
    "ExpiredToken": ExpiredCredentialsError,
    "InvalidToken": ExpiredCredentialsError,
    "TokenRefreshRequired": ExpiredCredentialsError,
    "RequestTimeTooSkewed": AccessDeniedError,
    "AllAccessDisabled": AccessDeniedError,
    "AccountProblem": AccessDeniedError,
    "NotImplemented": NotSupportedByStoreError,
    "MethodNotAllowed": NotSupportedByStoreError,
}
_BY_STATUS: dict[int, type[StoreError]] = {
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: NotFoundError,
    405: NotSupportedByStoreError,
    408: StoreTimeoutError,
    412: PreconditionFailedError,
    416: PreconditionFailedError,
    429: ThrottledError,
    501: NotSupportedByStoreError,
    503: ThrottledError,
    504: StoreTimeoutError,
}
_ADVICE = {
    "InvalidAccessKeyId": "the endpoint does not know the access key: check AWS_ACCESS_KEY_ID or --profile",
    "SignatureDoesNotMatch": "the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY or --profile",
    "ExpiredToken": "the session token has expired: log in again",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "AuthorizationHeaderMalformed": "the region is wrong: set --region",
    "AuthorizationQueryParametersError": "the region is wrong: set --region",
    "IllegalLocationConstraintException": "the region is wrong: set --region",
    "PermanentRedirect": "the bucket is in another region: set --region",
    "InvalidObjectState": "the object is archived and must be restored first",
}
NO_CREDENTIALS = (
    "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or --profile, or --no-sign-request "
    "for a public bucket"
)
UNTRUSTED = "the server's certificate is not trusted; AWS_CA_BUNDLE names the file of those who may vouch for it"
_MAX_MESSAGE = 200
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_SECOND = datetime.timedelta(seconds=1)
_NS = 1_000_000_000
_MAX_S = (2**63 - 1) // _NS
_USER = re.compile(r"//[^\s/]*@")


def store_error(status: int, code: str, message: str, what: str, *, region: str = "") -> StoreError:
    """The error that an answer of `status` with S3 error `code` means for the request `what` (`GET 'a/b'`).

    `region` is the bucket's true region where the endpoint told it.
    """
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status) or (TransientStoreError if status >= 500 else StoreError)
    if code == "ConditionalRequestConflict" and what.startswith("complete "):
        # S3 asks for a new upload here, not for another completion:
        # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
        kind = NoSuchUploadError
    if status == 400 and what.startswith("HEAD ") and kind is StoreError:
        kind = ExpiredCredentialsError  # as S3 answers it, without a body that would say so
    advice = _ADVICE.get(code) or one_line(message) or f"status {status}"
    if region and kind is StoreError:
        advice = f"the bucket is in region {region}: set --region {region}"
    label = code if code and not code.isdigit() else str(status)
    return kind(f"{what}: {advice} ({label})")


def unreachable(what: str, why: str) -> StoreError:
    """No connection, or a broken one."""
    return UnreachableError(f"{what}: {one_line(why)}")


def timed_out(what: str) -> StoreError:
    """No answer in time."""
    return StoreTimeoutError(f"{what}: no answer in time")


def nanoseconds(when: datetime.datetime) -> int:
    """A server's time as whole seconds since the epoch, in ns; the nearest that 64 bits hold, as the index keeps it.

    One without a zone is in UTC, as all of S3's are.
    """
    seconds = ((when if when.tzinfo else when.replace(tzinfo=datetime.UTC)) - _EPOCH) // _SECOND
    return max(-_MAX_S, min(_MAX_S, seconds)) * _NS


def one_line(text: str) -> str:
    """`text` without line breaks and without what an URL in it may say before an @, cut to what a log line can bear."""
    return _USER.sub("//***@", " ".join(text.split()))[:_MAX_MESSAGE]


class absent_is_not_this_version:  # noqa: N801 - reads as a sentence
    """S3 answers an If-Match write to a missing key with 404; the contract has one word for a lost race."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, NotFoundError) and self._condition.etag is not None:
            raise PreconditionFailedError(str(error)) from None
