"""Whom lazyfs talks to: no server that cannot prove who it is, and no bucket of another account."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.core.errors import StoreError, UnreachableError
from lazyfs.core.stats import Stats
from lazyfs.core.types import ObjectId, Range
from lazyfs.store.remote import S3Store, open_s3_store
from lazyfs.store.settings import S3Settings
from tests.proxy import Proxy, proxied
from tests.redis_server import make_certificate
from tests.servers import Server
from tests.store.test_errors import VERBS

ACCOUNT = "123456789012"
PART = 5 * 1024**2


@pytest.fixture
def server(moto: Server) -> Server:
    return moto


@pytest.fixture(autouse=True)
def keys(aws_environment: pytest.MonkeyPatch, moto: Server) -> pytest.MonkeyPatch:
    for name, value in moto.environment().items():
        aws_environment.setenv(name, value)
    return aws_environment


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "server.pem", ca=False)  # obstore takes no CA for a server


@pytest.fixture(scope="module")
def private(moto: Server, certificate: Path) -> Iterator[Proxy]:
    """A server with a certificate that nobody vouches for."""
    with proxied(moto, tls=certificate) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def opened(proxy: Proxy, bucket: str = "bucket", **settings: str) -> AsyncIterator[S3Store]:
    store = open_s3_store(S3Settings(bucket, endpoint_url=proxy.server.endpoint_url, **settings), stats=Stats())  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.aclose()


async def listen(store: S3Store, proxy: Proxy) -> None:
    settings = S3Settings("bucket", endpoint_url=proxy.server.endpoint_url)
    async with store.events("minio", settings, prefix="").listen():
        pass


TALK: dict[str, Callable[[S3Store, Proxy], Awaitable[object]]] = {
    **{name: lambda store, _, verb=verb: verb(store) for name, verb in VERBS.items()},  # type: ignore[misc]
    "copy": lambda store, _: store.copy(ObjectId("a", "0" * 32), "b"),
    "get_any": lambda store, _: store.get_any("a", limit_bytes=10),
    "listen": listen,
}


@pytest.mark.parametrize("verb", TALK)
async def test_a_certificate_that_nobody_vouches_for_is_refused_and_told(verb: str, private: Proxy) -> None:
    before = private.count()
    async with opened(private) as store:
        with pytest.raises(UnreachableError, match="certificate is not trusted; AWS_CA_BUNDLE") as caught:
            await TALK[verb](store, private)
    assert "\n" not in str(caught.value)
    assert private.count() == before, "nothing was sent, no signature and no name"


async def test_one_that_the_environment_vouches_for_is_not(
    private: Proxy, bucket: str, certificate: Path, keys: pytest.MonkeyPatch
) -> None:
    keys.setenv("AWS_CA_BUNDLE", str(certificate))
    async with opened(private, bucket) as store:
        etag = await store.put("a", b"0123456789")
        assert [info.key for info in (await store.list_page("")).objects] == ["a"]
        assert bytes(await store.get_range(ObjectId("a", etag), Range(2, 5))) == b"234"
        assert (await store.head("a")).size == 10
    with contextlib.suppress(StoreError):  # moto has no events, but it is reached
        async with opened(private, bucket) as store:
            await listen(store, private)
    assert private.count("get") >= 2


async def test_every_request_says_whose_bucket_it_expects(bucket: str, moto: Server) -> None:
    """And a copy also whose bucket it expects to copy from."""
    with proxied(moto) as proxy:
        async with opened(proxy, bucket, expected_bucket_owner=ACCOUNT) as store:
            await everything(store)
    kinds = {one.verb for one in proxy.seen}
    assert kinds >= {"list", "head", "get", "put", "copy", "delete", "create_upload", "upload_part", "copy_part"}
    assert kinds >= {"complete_upload", "abort_upload", "list_uploads"}
    assert [one for one in proxy.seen if one.owner != ACCOUNT] == []
    assert [one for one in proxy.seen if one.copies and one.source_owner != ACCOUNT] == []


async def everything(store: S3Store) -> None:
    """Each kind of request."""
    etag = await store.put("a", b"x" * PART)
    await store.put("odd\\name", b"x")
    oid = ObjectId("a", etag)
    await store.list_page("")
    await store.list_page("", delimiter="/", start_after="a")
    await store.head("a")
    await store.get_range(oid, Range(0, 5))
    await store.get_any("a", limit_bytes=PART)
    await store.range_answer("a", Range(0, 5), etag)
    await store.copy(oid, "b")
    await store.set_metadata(oid, {"k": "v"})
    oid = (await store.head("a")).oid
    upload = await store.create_upload("c")
    parts = [await store.upload_part(upload, 1, b"y" * PART), await store.copy_part(upload, 2, oid, Range(0, PART))]
    await store.complete_upload(upload, parts)
    await store.create_upload("d")
    for left in await store.list_uploads(""):
        await store.abort_upload(left)
    for key in ("a", "b", "c", "odd\\name"):
        await store.delete(key)
