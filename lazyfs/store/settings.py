"""Which bucket, and as whom: plain data that the clients of one endpoint share."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Which bucket, where, as whom. What is None is found as every AWS tool finds it (environment, files, roles).

    force_path_style    None: path style unless the endpoint is AWS
    max_connections     the limit of each of the connection pools of boto3 and of LIST, and of the threads that use them
    bulk_connections    the same of range GETs; connections and threads are made when they are needed
    read_timeout_s      the longest silence in a request, not the longest request
    request_timeout_s   the longest request: a server that is never silent and never ends is one that does not answer
    checksum            "crc32c" or "none"
    sse, sse_kms_key_id server-side encryption of what is written
    """

    bucket: str
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    no_sign_request: bool = False
    force_path_style: bool | None = None
    requester_pays: bool = False
    expected_bucket_owner: str | None = None
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    request_timeout_s: float = 300.0
    max_connections: int = 32
    bulk_connections: int = 32
    checksum: str = "crc32c"
    sse: str | None = None
    sse_kms_key_id: str | None = None

    @property
    def is_directory_bucket(self) -> bool:
        """Whether this is an S3 Express bucket, which has rules of its own."""
        return self.bucket.endswith("--x-s3")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Keys as they are now. They never show in a repr."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str | None = field(repr=False, default=None)


def is_aws(endpoint_url: str) -> bool:
    """Whether the endpoint belongs to AWS, China included."""
    host = urlsplit(endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
