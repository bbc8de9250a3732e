"""Every verb of the store meets every fault of the network: once, and it has succeeded; for ever, and it ends.

`Retrying` over the real clients, over a real server, through a proxy that injects. A thorough run (LAZYFS_THOROUGH=1)
has more of the faults with more of the verbs; which, LAZYFS_SEED chooses.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
import trio

from lazyfs.core.backoff import Backoff
from lazyfs.core.errors import NotFoundError, StoreError
from lazyfs.core.stats import Stats
from lazyfs.core.types import Condition, ObjectId, Part, Range, Upload
from lazyfs.store.remote import open_s3_store
from lazyfs.store.retrying import Retrying
from lazyfs.store.settings import S3Settings
from tests.campaign import THOROUGH
from tests.conftest import new_bucket_name
from tests.faults import FAULTS, FOR_EVER, Injector, sample
from tests.fuse.trees import random_bytes
from tests.proxy import Proxy, proxied
from tests.servers import Server

PART = 5 * 1024**2
DATA = random_bytes(3000)
SILENCE_S = 0.5
REQUEST_S = 1.5
LIMIT_S = 20
"""Far more than retries for a second can take: who is not back by then hangs."""


@dataclass
class Scene:
    """A bucket with an object `k`, and an upload of `u` with one part, before the fault comes."""

    store: Retrying
    patient: Retrying
    """The same, which tries again: an answer without a body leaves a connection in the pool that its fault holds."""
    server: Server
    bucket: str
    oid: ObjectId
    upload: Upload
    part: Part
    boto: object = field(repr=False, default=None)

    def get(self, key: str) -> bytes:
        body: bytes = self.boto.get_object(Bucket=self.bucket, Key=key)["Body"].read()  # type: ignore[attr-defined]
        return body

    def keys(self) -> list[str]:
        found = self.boto.list_objects_v2(Bucket=self.bucket).get("Contents", [])  # type: ignore[attr-defined]
        return [one["Key"] for one in found]

    def uploads(self) -> list[str]:
        found = self.boto.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])  # type: ignore[attr-defined]
        return sorted(one["UploadId"] for one in found)


async def listed(s: Scene) -> None:
    assert [info.key for info in (await s.store.list_page("")).objects] == ["a//b", "k"]


async def headed(s: Scene) -> None:
    info = await s.store.head("k")
    assert (info.etag, info.size) == (s.oid.etag, len(DATA))


async def read(s: Scene) -> None:
    assert bytes(await s.store.get_range(s.oid, Range(100, 2900))) == DATA[100:2900]


async def read_by_boto3(s: Scene) -> None:
    info = await s.store.head("a//b")
    assert bytes(await s.store.get_range(info.oid, Range(100, 2900))) == DATA[100:2900]


async def put(s: Scene) -> None:
    etag = await s.store.put("new", DATA, condition=Condition(absent=True))
    assert (await s.store.head("new")).etag == etag
    assert s.get("new") == DATA


async def overwritten(s: Scene) -> None:
    etag = await s.store.put("k", DATA[::-1], condition=Condition(etag=s.oid.etag))
    assert (await s.store.head("k")).etag == etag
    assert s.get("k") == DATA[::-1]


async def created(s: Scene) -> None:
    upload = await s.store.create_upload("big")
    part = await s.store.upload_part(upload, 1, DATA)
    await s.store.complete_upload(upload, [part])
    assert s.get("big") == DATA
    assert s.uploads() == [s.upload.upload_id], "an upload whose answer was lost stays"


async def sent(s: Scene) -> None:
    part = await s.store.upload_part(s.upload, 2, DATA)
    await s.store.complete_upload(s.upload, [s.part, part])
    assert s.get("u") == bytes(PART) + DATA
    assert s.uploads() == []


async def copied_part(s: Scene) -> None:
    part = await s.store.copy_part(s.upload, 2, s.oid, Range(0, 1000))
    await s.store.complete_upload(s.upload, [s.part, part])
    assert s.get("u") == bytes(PART) + DATA[:1000]


async def completed(s: Scene) -> None:
    etag = await s.store.complete_upload(s.upload, [s.part], condition=Condition(absent=True))
    assert (await s.store.head("u")).etag == etag
    assert s.get("u") == bytes(PART)
    assert s.uploads() == []


async def aborted(s: Scene) -> None:
    await s.store.abort_upload(s.upload)
    assert s.uploads() == []


async def told_uploads(s: Scene) -> None:
    assert list(await s.store.list_uploads("u")) == [s.upload]


async def copied(s: Scene) -> None:
    etag = await s.store.copy(s.oid, "copy")
    assert (await s.store.head("copy")).etag == etag
    assert s.get("copy") == DATA


async def described(s: Scene) -> None:
    etag = await s.store.set_metadata(s.oid, {"colour": "red"})
    info = await s.store.head("k")
    assert (info.etag, info.metadata) == (etag, {"colour": "red"})


async def deleted(s: Scene) -> None:
    await s.store.delete("k")
    assert s.keys() == ["a//b"]
    with pytest.raises(NotFoundError):
        await s.store.head("k")


VERBS: dict[str, tuple[str, Callable[[Scene], Awaitable[None]]]] = {
    "list": ("list", listed),
    "head": ("head", headed),
    "get": ("get", read),
    "get by boto3": ("get", read_by_boto3),
    "put": ("put", put),
    "overwrite": ("put", overwritten),
    "create_upload": ("create_upload", created),
    "upload_part": ("upload_part", sent),
    "copy_part": ("copy_part", copied_part),
    "complete_upload": ("complete_upload", completed),
    "abort_upload": ("abort_upload", aborted),
    "list_uploads": ("list_uploads", told_uploads),
    "copy": ("copy", copied),
    "set_metadata": ("copy", described),
    "delete": ("delete", deleted),
}
"""By name: which requests the fault befalls, and what is done and found afterwards."""
FOLLOWED = {("get", "307 TemporaryRedirect")}
"""By obstore, which cannot be told not to; who cannot be reached there is asked again."""
TRANSIENT = [name for name, kind in FAULTS.items() if kind.transient]


@pytest.fixture
def proxy(moto: Server) -> Iterator[Proxy]:
    with proxied(moto) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def scene(server: Server, proxy: Proxy, *, deadline_s: float) -> AsyncIterator[Scene]:
    bucket = server.make_bucket(new_bucket_name())
    settings = S3Settings(
        bucket,
        endpoint_url=proxy.server.endpoint_url,
        connect_timeout_s=1,
        read_timeout_s=SILENCE_S,
        request_timeout_s=REQUEST_S,
        max_connections=4,
        bulk_connections=4,
    )
    bare = open_s3_store(settings, stats=Stats())
    backoff = Backoff(base_s=0.01, cap_s=0.05, deadline_s=deadline_s)
    boto = server.client()
    try:
        oid = ObjectId("k", await bare.put("k", DATA))
        boto.put_object(Bucket=bucket, Key="a//b", Body=DATA)
        upload = await bare.create_upload("u")
        part = await bare.upload_part(upload, 1, bytes(PART))
        patient = Retrying(bare, backoff=replace(backoff, deadline_s=10), stats=Stats())
        yield Scene(Retrying(bare, backoff=backoff, stats=Stats()), patient, server, bucket, oid, upload, part, boto)
    finally:
        proxy.fault = lambda _seen: None
        await bare.aclose()
        boto.close()
        server.drop_bucket(bucket)


def cases(names: list[str], usually: int, thorough: int) -> list[tuple[str, str]]:
    seen = [name for name in names if THOROUGH or "drip" not in name]  # each lasts until the request's deadline
    pairs = [f"{verb}|{fault}" for verb in VERBS for fault in seen if verb != "head" or not FAULTS[fault].needs_body]
    return [(verb, fault) for verb, _, fault in (pair.partition("|") for pair in sample(pairs, usually, thorough))]


@pytest.mark.campaign
@pytest.mark.expect_warnings  # that a range was answered with 200
@pytest.mark.parametrize(("verb", "fault"), cases(TRANSIENT, 10, 100))
async def test_a_fault_that_passes_is_not_noticed(
    verb: str, fault: str, moto: Server, proxy: Proxy, aws_environment: pytest.MonkeyPatch
) -> None:
    signed_in(aws_environment, moto)
    request, act = VERBS[verb]
    async with scene(moto, proxy, deadline_s=10) as s:
        proxy.fault = injector = Injector(request, FAULTS[fault].strike, 1)
        with trio.fail_after(LIMIT_S):
            await act(s)
        assert injector.struck == 1


@pytest.mark.campaign
@pytest.mark.expect_warnings
@pytest.mark.parametrize(("verb", "fault"), cases(list(FAULTS), 6, 100))
async def test_a_fault_that_stays_is_an_error_in_time(
    verb: str, fault: str, moto: Server, proxy: Proxy, aws_environment: pytest.MonkeyPatch
) -> None:
    """And afterwards the store works as before: no connection and no thread is lost."""
    signed_in(aws_environment, moto)
    request, act = VERBS[verb]
    async with scene(moto, proxy, deadline_s=0.3) as s:
        proxy.fault = injector = Injector(request, FAULTS[fault].strike, FOR_EVER)
        error = None
        with trio.fail_after(LIMIT_S):
            try:
                await act(s)
            except StoreError as raised:
                error = raised
        assert injector.struck >= 1
        # Done, and seen to be: of a PUT and the like nothing is needed of an answer but that it came.
        assert error is not None or FAULTS[fault].executed
        assert "\n" not in str(error)
        if not FAULTS[fault].transient and (verb, fault) not in FOLLOWED:
            assert injector.struck <= 2, "what will not go away is not asked for again"
            if request != "head":
                assert error is not None
                assert error.errno in FAULTS[fault].numbers, error
        proxy.fault = lambda _seen: None
        with trio.fail_after(LIMIT_S):
            assert bytes(await s.patient.get_range(ObjectId("a//b", s.oid.etag), Range(0, 10))) == DATA[:10]
            await s.patient.list_page("")


def signed_in(environment: pytest.MonkeyPatch, server: Server) -> None:
    for name, value in server.environment().items():
        environment.setenv(name, value)
