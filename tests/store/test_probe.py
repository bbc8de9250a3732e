"""The probe believes what it saw, and leaves nothing behind."""

from __future__ import annotations

import pytest
import trio

from lazyfs.core.backoff import Backoff
from lazyfs.core.errors import AccessDeniedError, NoSuchBucketError, TransientStoreError
from lazyfs.core.stats import Stats
from lazyfs.core.types import Capabilities
from lazyfs.store.memory import MemoryStore
from lazyfs.store.probe import check_bucket, probe
from lazyfs.store.remote import open_s3_store
from lazyfs.store.retrying import Retrying
from lazyfs.store.s3 import S3Settings
from tests.servers import Server


@pytest.mark.parametrize("range_206", [True, False])
@pytest.mark.parametrize("if_match_get", [True, False])
@pytest.mark.parametrize("conditional_put", [True, False])
async def test_probe_tells_what_a_store_does(range_206: bool, if_match_get: bool, conditional_put: bool) -> None:
    truth = Capabilities(range_206=range_206, if_match_get=if_match_get, conditional_put=conditional_put)
    store = MemoryStore(capabilities=truth)
    assert await probe(store, writable=True, sample=None) == truth
    assert store.keys() == []
    sample = store.put_now("k", b"x")
    seen = await probe(store, writable=False, sample=sample)
    assert (seen.range_206, seen.if_match_get) == (range_206, if_match_get)


@pytest.mark.autojump
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
async def test_one_failure_on_the_way_changes_nothing(number: int, moment: str) -> None:
    """With the retries of a mount: whether conditions are honoured must not hang on one 503, or on a lost answer."""
    calls = 0

    def hook(when: str, verb: str, key: str) -> None:
        nonlocal calls
        calls += when == moment
        if calls == number and when == moment:
            raise TransientStoreError("lost")

    truth = Capabilities(range_206=True, if_match_get=True, conditional_put=True)
    store = MemoryStore(capabilities=truth, hook=hook)
    patient = Retrying(store, backoff=Backoff(deadline_s=10.0), stats=Stats())
    assert await probe(patient, writable=True, sample=None) == truth
    assert store.keys() == []


async def test_read_only_probe_without_a_sample_asks_nothing() -> None:
    store = MemoryStore()
    seen = await probe(store, writable=False, sample=None)
    assert (seen.range_206, seen.if_match_get, store.requests) == (True, True, [])


async def test_empty_sample_cannot_be_asked() -> None:
    store = MemoryStore()
    await probe(store, writable=False, sample=store.put_now("k", b""))
    assert store.requests == []


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
async def test_probe_deletes_its_key_when_it_fails_half_way(number: int) -> None:
    calls = 0

    def hook(moment: str, verb: str, key: str) -> None:
        nonlocal calls
        if moment == "before":
            calls += 1
            if calls == number:
                raise TransientStoreError("down")

    store = MemoryStore(hook=hook)
    with pytest.raises(TransientStoreError):
        await probe(store, writable=True, sample=None)
    assert store.keys() == []


async def test_probe_deletes_its_key_when_it_is_cancelled() -> None:
    scope = trio.CancelScope()

    def hook(moment: str, verb: str, key: str) -> None:
        if verb == "get":
            scope.cancel()

    store = MemoryStore(hook=hook)
    with scope:
        await probe(store, writable=True, sample=None)
    assert scope.cancelled_caught
    assert store.keys() == []


async def test_probe_of_a_real_server(server: Server, bucket: str, aws_environment: pytest.MonkeyPatch) -> None:
    store = open_s3_store(S3Settings(bucket, endpoint_url=server.endpoint_url), stats=Stats())
    seen = await probe(store, writable=True, sample=None)
    assert seen == Capabilities(
        range_206=True, if_match_get=True, conditional_put="conditional-put" not in server.limits
    )
    assert (await store.list_page("")).objects == ()
    await check_bucket(store)
    await store.aclose()


async def test_check_bucket_passes_the_error_on() -> None:
    for error in (NoSuchBucketError("none"), AccessDeniedError("no")):

        def hook(moment: str, verb: str, key: str, error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            await check_bucket(MemoryStore(hook=hook))
