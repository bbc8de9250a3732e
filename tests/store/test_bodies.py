"""What goes up without the SDK: the same requests that the SDK would send, signed by it but for the body."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
import urllib3

from lazyfs.core.stats import Stats
from lazyfs.core.types import Condition, Upload
from lazyfs.store.base import PutOptions
from lazyfs.store.checksum import crc32c
from lazyfs.store.remote import S3Store, open_s3_store
from lazyfs.store.settings import S3Settings


class Sent:
    """In place of the network: what is sent, answered by an ETag."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []

        def request(
            pool: urllib3.PoolManager, method: str, url: str, *, headers: Mapping[str, str], **_: Any
        ) -> urllib3.HTTPResponse:
            self.requests.append((method, url, {name.lower(): value for name, value in headers.items()}))
            return urllib3.HTTPResponse(io.BytesIO(), {"ETag": '"etag"'}, 200, preload_content=False)

        monkeypatch.setattr(urllib3.PoolManager, "request", request)


@pytest.fixture
def sent(aws_environment: pytest.MonkeyPatch) -> Sent:
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "SESSION_TOKEN": "token"}.items():
        aws_environment.setenv(f"AWS_{name}", value)
    return Sent(aws_environment)


def opened(bucket: str = "bucket", **settings: Any) -> S3Store:
    return open_s3_store(S3Settings(bucket, **{"region": "eu-west-1", **settings}), stats=Stats())


async def test_a_put_says_what_the_sdk_would_say(sent: Sent) -> None:
    store = opened(sse="aws:kms", sse_kms_key_id="k1", requester_pays=True, expected_bucket_owner="123456789012")
    options = PutOptions(content_type="text/plain", metadata={"file-mtime": "1ns"}, storage_class="STANDARD_IA")
    assert await store.put("a b/é+~", b"body", options=options, condition=Condition(absent=True)) == "etag"
    ((method, url, headers),) = sent.requests
    assert (method, url) == ("PUT", "https://bucket.s3.eu-west-1.amazonaws.com/a%20b/%C3%A9%2B~")
    signature = headers.pop("authorization")
    assert headers.pop("x-amz-date")
    told = {
        "content-type": "text/plain",
        "if-none-match": "*",
        "x-amz-checksum-crc32c": crc32c(b"body"),
        "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
        "x-amz-expected-bucket-owner": "123456789012",
        "x-amz-meta-file-mtime": "1ns",
        "x-amz-request-payer": "requester",
        "x-amz-security-token": "token",
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "k1",
        "x-amz-storage-class": "STANDARD_IA",
    }
    assert headers == {**told, "content-length": "4"}
    assert signature.startswith("AWS4-HMAC-SHA256 Credential=key/")
    assert all(name in signature for name in told), "what is not signed may be changed on the way"
    await store.aclose()


async def test_a_part_and_a_version(sent: Sent) -> None:
    store = opened(checksum="none")
    await store.put("k", b"", condition=Condition(etag="e1"))
    part = await store.upload_part(Upload("k", "an id/+"), 7, b"part")
    (_, _, headers), (_, url, _) = sent.requests
    assert headers["if-match"] == '"e1"'
    assert "x-amz-checksum-crc32c" not in headers
    assert url.endswith("/k?partNumber=7&uploadId=an%20id%2F%2B")
    assert (part.number, part.etag, part.size, part.checksum) == (7, "etag", 4, "")
    await store.aclose()


async def test_nobody_signs_nothing(sent: Sent) -> None:
    store = opened(no_sign_request=True, endpoint_url="http://127.0.0.1:9")
    await store.put("k", b"body")
    ((_, url, headers),) = sent.requests
    assert url == "http://127.0.0.1:9/bucket/k"
    assert "authorization" not in headers
    await store.aclose()


@pytest.mark.parametrize(
    ("bucket", "key", "accepted"),
    [
        ("bucket", "a/b", True),
        ("bucket", "a/...", True),
        ("bucket", "a/../b", False),
        ("bucket", "./b", False),
        ("data--use1-az4--x-s3", "a", False),
        ("arn:aws:s3:eu-west-1:123456789012:accesspoint/data", "a", False),
    ],
)
async def test_what_the_sdk_is_needed_for(sent: Sent, bucket: str, key: str, accepted: bool) -> None:
    store = opened(bucket)
    assert store._bodies.accepts(key) == accepted
    await store.aclose()
