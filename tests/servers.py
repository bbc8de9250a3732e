"""Real S3 servers on free loopback ports, each a subprocess that is stopped by its own process id.

`moto_server` is the most faithful one, `juicefs_gateway` is MinIO's S3 layer on a directory and checks signatures.
`foreign_endpoint` is whatever LAZYFS_TEST_ENDPOINT and the AWS_* variables name.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from lazyfs.cli.gateway import REGION, free_port, running_gateway, running_server

_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Server:
    """A running S3 endpoint and what the tests must know of its manners.

    `limits` names what the server is known not to do; each is explained in `LIMITS`.
    """

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    name: str
    limits: frozenset[str] = frozenset()

    def client(self, *, secret_key: str | None = None) -> Any:
        """A plain boto3 client: the independent witness of what lazyfs did."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 2},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def make_bucket(self, name: str) -> str:
        """Create the bucket; its name."""
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def drop_bucket(self, name: str) -> None:
        """Delete the bucket with all that is in it."""
        client = self.client()
        for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", ()):
            client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for found in page.get("Contents", ()):
                client.delete_object(Bucket=name, Key=found["Key"])
        client.delete_bucket(Bucket=name)
        client.close()

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to be this server's user."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }


LIMITS = {
    "conditional-put": "ignores If-None-Match and If-Match on PUT and completion (field-notes: juicefs gateway)",
    "folds-slashes": "keeps keys as paths of a file system: an empty component, `.` and `..` are refused or folded",
    "file-and-directory": "`a` and `a/b` cannot both exist",
    "marker-etag": "gives a `dir/` marker no ETag",
    "marker-metadata": "gives a `dir/` marker no user metadata",
    "small-parts": "completes an upload whose parts are too small",
    "control-keys": "answers 404 or 500 to keys with a newline and some control characters (moto behind Flask)",
    "copy-if-match": "ignores x-amz-copy-source-if-match (moto)",
    "unknown-upload": "answers 500 to a part of an unknown upload, 200 to a repeated completion (moto)",
    "signatures": "accepts any credentials (moto)",
}
"""What a server is known not to do, and where that is known from. A limit that no longer holds fails its test."""
MOTO_LIMITS = frozenset({"control-keys", "copy-if-match", "unknown-upload", "signatures"})
GATEWAY_LIMITS = frozenset(
    {"conditional-put", "folds-slashes", "file-and-directory", "marker-etag", "marker-metadata", "small-parts"}
)


@contextlib.contextmanager
def moto_server() -> Iterator[Server]:
    """moto in a process of its own, empty, until the block ends."""
    port = free_port()
    command = [str(_BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with running_server(command, port, os.environ, Path.cwd()):
        yield Server(f"http://127.0.0.1:{port}", "testing", "testing-secret", "moto", MOTO_LIMITS)


@contextlib.contextmanager
def juicefs_gateway(directory: Path) -> Iterator[Server]:
    """The juicefs gateway with its data and metadata below `directory`, until the block ends."""
    with running_gateway(directory) as gateway:
        yield Server(gateway.endpoint_url, gateway.access_key, gateway.secret_key, "gateway", GATEWAY_LIMITS)


def foreign_endpoint() -> Server | None:
    """The endpoint of LAZYFS_TEST_ENDPOINT, or None. LAZYFS_TEST_LIMITS may name limits, separated by commas."""
    url = os.environ.get("LAZYFS_TEST_ENDPOINT")
    if not url:
        return None
    limits = frozenset(filter(None, os.environ.get("LAZYFS_TEST_LIMITS", "").split(",")))
    return Server(url, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], "endpoint", limits)
