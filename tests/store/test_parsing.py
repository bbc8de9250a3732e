"""What the pure parts of the store decide, without a server."""

from __future__ import annotations

import os

import pytest

from lazyfs.core.errors import NoSuchUploadError, TransientStoreError
from lazyfs.core.stats import Stats
from lazyfs.core.types import ObjectInfo, Part
from lazyfs.store.answers import store_error
from lazyfs.store.bulk import BulkReader
from lazyfs.store.checksum import crc32c, crc32c_of_parts
from lazyfs.store.listing import parse_page
from lazyfs.store.memory import MemoryStore
from lazyfs.store.remote import open_s3_store
from lazyfs.store.s3 import ControlPlane
from lazyfs.store.settings import S3Settings, is_aws

PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult{namespace}><Name>b</Name><IsTruncated>true</IsTruncated><EncodingType>{encoding}</EncodingType>
<NextContinuationToken>tok&amp;en=</NextContinuationToken>
<Contents><Key>{key}</Key><LastModified>2026-11-24T16:20:06.789Z</LastModified>
<ETag>&quot;abc-2&quot;</ETag><Size>7</Size><StorageClass>GLACIER</StorageClass></Contents>
<CommonPrefixes><Prefix>a+b%2F</Prefix></CommonPrefixes></ListBucketResult>"""


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
def test_page_with_and_without_a_namespace(namespace: str) -> None:
    page = parse_page(PAGE.format(namespace=namespace, encoding="url", key="x%2By+z%0A%F0%9F%98%80").encode(), "LIST")
    assert page.objects == (ObjectInfo("x+y z\n😀", "abc-2", 7, 1795537206 * 10**9, "GLACIER"),)
    assert (page.prefixes, page.next_token) == (("a b/",), "tok&en=")


def test_page_of_a_server_that_does_not_encode() -> None:
    page = parse_page(PAGE.format(namespace="", encoding="", key="x%2By+z").encode(), "LIST")
    assert (page.objects[0].key, page.prefixes) == ("x%2By+z", ("a+b%2F",))


def test_key_that_is_not_utf8_survives() -> None:
    page = parse_page(PAGE.format(namespace="", encoding="url", key="%FF").encode(), "LIST")
    assert os.fsencode(page.objects[0].key) == b"\xff"


def test_page_whose_objects_lack_what_is_optional() -> None:
    whole = PAGE.format(namespace="", encoding="url", key="k")
    bare = "<Contents><Key>bare</Key><LastModified>2026-11-24T16:20:06Z</LastModified><Size>1</Size></Contents>"
    page = parse_page(whole.replace("<CommonPrefixes>", bare + "<CommonPrefixes>").encode(), "LIST")
    assert [(info.key, info.etag, info.storage_class) for info in page.objects] == [
        ("k", "abc-2", "GLACIER"),
        ("bare", "", ""),
    ]
    with pytest.raises(TransientStoreError):
        parse_page(whole.replace("<Size>7</Size>", "").encode(), "LIST")


def test_checksum_of_parts_is_that_of_the_whole() -> None:
    bodies = [b"one" * 1000, b"", b"three"]
    parts = [Part(number, "", len(body), crc32c(body)) for number, body in enumerate(bodies, 1)]
    assert crc32c_of_parts(parts) == crc32c(b"".join(bodies))
    assert crc32c(b"123456789") == "4waSgw=="  # the check value of the CRC catalogue, 0xe3069283
    assert crc32c_of_parts([]) is None
    assert crc32c_of_parts([*parts, Part(4, "", 1)]) is None


def test_entities_are_not_expanded() -> None:
    bomb = (
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]><ListBucketResult>'
        "<Contents><Key>&e;</Key><Size>1</Size><LastModified>2026-11-24T16:20:06Z</LastModified></Contents>"
        "</ListBucketResult>"
    )
    try:
        keys = [info.key for info in parse_page(bomb.encode(), "LIST").objects]
    except TransientStoreError:
        keys = []
    assert keys in ([], [""])


@pytest.mark.parametrize("key", ["a", "a/b", "..a", "a/..b/c...", "%2F", "a b", "\\", "\x80", ".hidden/x"])
def test_keys_that_obstore_takes(key: str) -> None:
    assert BulkReader.accepts(key)


@pytest.mark.parametrize(
    "key", ["", "a//b", "/a", "a/", ".", "..", "a/./b", "../b", "a/..", "\n", "a\tb", "\x7f", "\x00", "\udcff"]
)
def test_keys_that_obstore_refuses_or_mangles(key: str) -> None:
    assert not BulkReader.accepts(key)


def test_conflict_on_completion_means_a_new_upload() -> None:
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    assert isinstance(store_error(409, "ConditionalRequestConflict", "", "complete 'k'"), NoSuchUploadError)
    assert isinstance(store_error(409, "ConditionalRequestConflict", "", "PUT 'k'"), TransientStoreError)


def test_message_is_one_short_line() -> None:
    text = str(store_error(400, "Odd", "so\nlong " * 1000, "PUT 'k'"))
    assert "\n" not in text
    assert len(text) < 300


@pytest.mark.parametrize(
    ("settings", "path_style"),
    [
        (S3Settings("bucket"), False),
        (S3Settings("dotted.bucket"), True),
        (S3Settings("bucket", endpoint_url="http://127.0.0.1:9000"), True),
        (S3Settings("bucket", endpoint_url="https://storage.example.org"), True),
        (S3Settings("bucket", endpoint_url="https://storage.example.org", force_path_style=False), False),
        (S3Settings("bucket", endpoint_url="https://s3.eu-west-1.amazonaws.com"), False),
        (S3Settings("bucket", force_path_style=True), True),
    ],
)
async def test_addressing(settings: S3Settings, path_style: bool, aws_environment: pytest.MonkeyPatch) -> None:
    aws_environment.setenv("AWS_ACCESS_KEY_ID", "key")
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    aws_environment.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    control = ControlPlane(settings)
    url = control.presigned_list_url({})
    assert control.path_style is path_style
    assert (f"//{settings.bucket}." in url) is not path_style
    assert control.region == "eu-west-1"
    if settings.endpoint_url is None:
        assert "//s3.eu-west-1.amazonaws.com" in url.replace("bucket.", ""), "the endpoint of its region"
    control.close()


async def test_endpoint_of_the_environment_gets_path_style(aws_environment: pytest.MonkeyPatch) -> None:
    aws_environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    control = ControlPlane(S3Settings("bucket", no_sign_request=True))
    assert control.path_style
    assert control.presigned_list_url({}).startswith("http://127.0.0.1:9000/bucket?")
    control.close()


async def test_requester_and_owner_are_signed_and_sent(aws_environment: pytest.MonkeyPatch) -> None:
    aws_environment.setenv("AWS_ACCESS_KEY_ID", "key")
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    settings = S3Settings(
        "bucket", endpoint_url="http://127.0.0.1:9", requester_pays=True, expected_bucket_owner="123456789012"
    )
    store = open_s3_store(settings, stats=Stats())
    url = store._control.presigned_list_url({"Prefix": "p"}).lower()
    for name, value in store._control.signed_headers.items():
        assert name in url or f"{name}={value}" in url
    await store.aclose()


def test_which_endpoints_are_aws() -> None:
    assert is_aws("https://s3.amazonaws.com")
    assert is_aws("https://s3.cn-north-1.amazonaws.com.cn")
    assert not is_aws("https://amazonaws.com.example.org")


async def test_memory_store_logs_requests_and_pages_by_token() -> None:
    store = MemoryStore()
    for number in range(5):
        store.put_now(f"k{number}", b"")
    page = await store.list_page("", limit=2)
    assert page.next_token is not None
    assert [info.key for info in (await store.list_page("", token=page.next_token)).objects] == ["k2", "k3", "k4"]
    assert [request.verb for request in store.requests] == ["list", "list"]
