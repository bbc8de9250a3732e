"""Every store keeps the contract: the fake, and real clients against real servers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from lazyfs.core.errors import NotFoundError, PreconditionFailedError
from lazyfs.core.stats import Stats
from lazyfs.core.types import ObjectId
from lazyfs.store.base import Store
from lazyfs.store.memory import MemoryStore
from lazyfs.store.remote import open_s3_store
from lazyfs.store.s3 import S3Settings
from tests.servers import Server
from tests.store.contract import StoreContract, Subject


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def subject(self) -> Subject:
        @contextlib.asynccontextmanager
        async def open_store() -> AsyncIterator[Store]:
            yield MemoryStore()

        return Subject(open_store)

    async def test_a_directory_bucket_renames_in_one_step(self) -> None:
        store = MemoryStore(renames=True)
        oid = store.put_now("from", b"bytes", metadata={"a": "b"}).oid
        store.put_now("to", b"in the way")
        assert await store.rename(oid, "to", token="1") == oid.etag
        assert await store.rename(oid, "to", token="1") == oid.etag, "an answer that was lost"
        assert (store.keys(), store.body("to"), (await store.head("to")).metadata) == (["to"], b"bytes", {"a": "b"})
        with pytest.raises(NotFoundError):
            await store.rename(oid, "elsewhere", token="2")
        with pytest.raises(PreconditionFailedError):
            await store.rename(ObjectId("to", "0" * 32), "elsewhere", token="3")


class TestS3Store(StoreContract):
    @pytest.fixture
    def subject(self, server: Server, bucket: str, aws_environment: pytest.MonkeyPatch) -> Subject:
        @contextlib.asynccontextmanager
        async def open_store() -> AsyncIterator[Store]:
            store = open_s3_store(S3Settings(bucket, endpoint_url=server.endpoint_url), stats=Stats())
            try:
                yield store
            finally:
                await store.aclose()

        return Subject(open_store, server.limits)

    async def test_metadata_is_changed_and_nothing_else(self, subject: Subject, server: Server, bucket: str) -> None:
        headers = {"ContentType": "text/plain", "CacheControl": "max-age=7"}
        if server.name == "moto":
            headers |= {"ContentDisposition": "inline", "ContentLanguage": "en", "StorageClass": "STANDARD_IA"}
        client = server.client()
        client.put_object(Bucket=bucket, Key="k", Body=b"x", Metadata={"theirs": "1"}, **headers)
        before = client.head_object(Bucket=bucket, Key="k")
        async with subject.open() as store:
            await store.set_metadata((await store.head("k")).oid, {"ours": "2"})
        after = client.head_object(Bucket=bucket, Key="k")
        client.close()
        assert after["Metadata"] == {"theirs": "1", "ours": "2"}
        assert all(after.get(name) == before.get(name) for name in headers)
        assert after["ContentType"] == "text/plain"
