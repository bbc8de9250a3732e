"""The one retry loop, on a clock that jumps and a store that fails on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import trio

from lazyfs.core.backoff import Backoff
from lazyfs.core.errors import (
    AccessDeniedError,
    NoSuchUploadError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    StoreTimeoutError,
    ThrottledError,
    TransientStoreError,
    UnreachableError,
)
from lazyfs.core.stats import Stats
from lazyfs.core.types import Condition, ObjectId, Range
from lazyfs.store.memory import MemoryStore
from lazyfs.store.retrying import Retrying

pytestmark = pytest.mark.autojump
ABSENT = Condition(absent=True)
BACKOFF = Backoff(base_s=1, cap_s=8, deadline_s=60)


def faulty(faults: Iterable[tuple[str, str, StoreError]]) -> Callable[[str, str, str], None]:
    """A hook that raises each (moment, verb, error) once, in order."""
    left = list(faults)

    def hook(moment: str, verb: str, key: str) -> None:
        if left and left[0][:2] == (moment, verb):
            raise left.pop(0)[2]

    return hook


def make(*faults: tuple[str, str, StoreError]) -> tuple[MemoryStore, Retrying, Stats]:
    inner, stats = MemoryStore(hook=faulty(faults)), Stats()
    return inner, Retrying(inner, backoff=BACKOFF, stats=stats, random=lambda: 0.999), stats


async def test_transient_errors_are_tried_again_with_growing_delays() -> None:
    inner, store, stats = make(
        ("before", "get", UnreachableError("reset")),
        ("before", "get", ThrottledError("slow down")),
        ("before", "get", StoreTimeoutError("silence")),
    )
    oid = inner.put_now("k", b"data").oid
    started = trio.current_time()
    assert bytes(await store.get_range(oid, Range(1, 3))) == b"at"
    assert 6 < trio.current_time() - started <= 7  # 1 + 2 + 4
    assert (stats.get("s3.retries"), stats.get("s3.throttles")) == (3, 1)


async def test_throttling_is_told_as_it_comes_and_nothing_else_is() -> None:
    faults = [ThrottledError("slow down"), UnreachableError("reset"), ThrottledError("slow down")]
    inner, heard = MemoryStore(hook=faulty([("before", "get", fault) for fault in faults])), list[float]()
    store = Retrying(
        inner,
        backoff=BACKOFF,
        stats=Stats(),
        random=lambda: 0.999,
        on_throttled=lambda: heard.append(trio.current_time()),
    )
    oid = inner.put_now("k", b"data").oid
    started = trio.current_time()
    await store.get_range(oid, Range(0, 4))
    assert [round(when - started) for when in heard] == [0, 3]


async def test_lasting_errors_are_raised_at_once() -> None:
    inner, store, stats = make(("before", "head", AccessDeniedError("no")))
    with pytest.raises(AccessDeniedError):
        await store.head("k")
    with pytest.raises(NotFoundError):
        await store.head("k")
    assert (len(inner.requests), stats.get("s3.retries")) == (2, 0)


async def test_deadline_ends_the_attempts_with_the_last_error() -> None:
    def down(moment: str, verb: str, key: str) -> None:
        raise TransientStoreError(f"down at {trio.current_time():.0f}")

    inner = MemoryStore(hook=down)
    store = Retrying(inner, backoff=BACKOFF, stats=Stats(), random=lambda: 0.999)
    started = trio.current_time()
    with pytest.raises(TransientStoreError):
        await store.list_page("")
    assert 40 < trio.current_time() - started < 60
    assert len(inner.requests) == 10


async def test_cancel_ends_the_wait() -> None:
    inner, store, _ = make(*[("before", "head", TransientStoreError("down"))] * 50)
    with trio.move_on_after(5) as scope:
        await store.head("k")
    assert scope.cancelled_caught
    assert trio.current_time() - scope.deadline < 0.001
    assert len(inner.requests) == 3


async def test_put_whose_answer_was_lost_has_succeeded() -> None:
    inner, store, _ = make(("after", "put", UnreachableError("reset")))
    etag = await store.put("k", b"mine", condition=ABSENT)
    assert (etag, inner.body("k")) == ((await inner.head("k")).etag, b"mine")


async def test_put_that_lost_the_race_after_a_retry_says_so() -> None:
    inner, store, _ = make(("before", "put", UnreachableError("reset")))
    inner.put_now("k", b"theirs")
    with pytest.raises(PreconditionFailedError):
        await store.put("k", b"mine", condition=ABSENT)
    assert inner.body("k") == b"theirs"


async def test_first_put_that_loses_the_race_asks_nothing() -> None:
    inner, store, _ = make()
    inner.put_now("k", b"mine")  # equal bytes, but not ours
    with pytest.raises(PreconditionFailedError):
        await store.put("k", b"mine", condition=ABSENT)
    assert [request.verb for request in inner.requests] == ["put"]


@pytest.mark.parametrize("condition", [Condition(), ABSENT])
async def test_completion_whose_answer_was_lost_has_succeeded(condition: Condition) -> None:
    inner, store, _ = make(("after", "complete_upload", StoreTimeoutError("silence")))
    inner._min_part_size = 1
    upload = await store.create_upload("k")
    parts = [await store.upload_part(upload, number, body) for number, body in ((2, b"bb"), (1, b"a"))]
    etag = await store.complete_upload(upload, parts, condition=condition)
    assert inner.body("k") == b"abb"
    assert (await store.head("k")).etag == etag


async def test_completion_of_an_upload_that_somebody_aborted_says_so() -> None:
    inner, store, _ = make(("before", "complete_upload", StoreTimeoutError("silence")))
    upload = await store.create_upload("k")
    part = await store.upload_part(upload, 1, b"mine")
    await inner.abort_upload(upload)
    with pytest.raises(NoSuchUploadError):
        await store.complete_upload(upload, [part])
    inner.put_now("k", b"mine")  # the same bytes by one PUT are another ETag
    inner.hook = faulty([("before", "complete_upload", StoreTimeoutError("silence"))])
    with pytest.raises(NoSuchUploadError):
        await store.complete_upload(upload, [part])


async def test_an_upload_that_was_begun_without_an_answer_is_aborted() -> None:
    seconds = [1_700_000_000]
    inner, store, _ = make()
    inner._clock = lambda: seconds[0] * 10**9
    theirs = await inner.create_upload("k")
    beside = await inner.create_upload("k2")
    seconds[0] += 100
    inner.hook = faulty([("after", "create_upload", UnreachableError("reset"))] * 2)
    ours = await store.create_upload("k")
    assert await inner.list_uploads("") == sorted([theirs, ours, beside], key=lambda one: (one.key, one.upload_id))


async def test_of_an_upload_begun_twice_nothing_is_aborted_that_may_be_of_others() -> None:
    inner, store, _ = make()
    theirs = [await inner.create_upload("k") for _ in range(2)]
    inner.hook = faulty([("before", "create_upload", UnreachableError("reset"))])
    ours = await store.create_upload("k")
    assert await inner.list_uploads("k") == [*theirs, ours]


async def test_an_upload_that_was_refused_before_is_not_looked_for() -> None:
    inner, store, _ = make()
    theirs = await inner.create_upload("k")
    inner.hook = faulty([("before", "create_upload", ThrottledError("slow down"))])
    ours = await store.create_upload("k")
    assert await inner.list_uploads("k") == [theirs, ours]
    assert [request.verb for request in inner.requests].count("list_uploads") == 1, "ours, just now"


async def test_question_after_a_lost_answer_is_retried_too() -> None:
    _, store, stats = make(("after", "put", UnreachableError("reset")), ("before", "head", ThrottledError("slow down")))
    await store.put("k", b"mine", condition=ABSENT)
    assert stats.get("s3.retries") == 2


async def test_every_other_verb_survives_a_lost_answer() -> None:
    for verb in (
        "list",
        "head",
        "create_upload",
        "upload_part",
        "abort_upload",
        "list_uploads",
        "copy",
        "set_metadata",
        "delete",
    ):
        inner, store, stats = make(("after", verb, TransientStoreError("lost")))
        oid = inner.put_now("k", b"x").oid
        upload = await store.create_upload("u")
        await store.upload_part(upload, 1, b"x")
        await store.abort_upload(upload)
        await store.list_uploads("")
        await store.copy(oid, "c")
        await store.set_metadata(oid, {"a": "1"})
        await store.list_page("")
        await store.head("k")
        await store.delete("k")
        assert stats.get("s3.retries") == 1, verb
        assert inner.keys() == ["c"]
    with pytest.raises(NotFoundError):
        await store.get_range(ObjectId("k", oid.etag), Range(0, 1))
