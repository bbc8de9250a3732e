"""What an endpoint really does, seen once at mount.

A precondition is never believed to be honoured because a call succeeded: each is tried where it must fail. The probe
never leaves its key behind, whatever happens to it.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from typing import Protocol

import trio

from lazyfs.core.errors import PreconditionFailedError, StoreError
from lazyfs.core.types import Capabilities, Condition, ObjectInfo, Range
from lazyfs.store.base import Store

PROBE_PREFIX = ".lazyfs-probe-"
"""Keys that start so are ours and may be deleted by anybody who finds them."""

_BODY = b"lazyfs asks what this endpoint honours"
_REFUSED = b"an endpoint that keeps this does not honour conditions"
"""Another body, or a repeated attempt would be taken for the first one that has succeeded."""
_WRONG_ETAG = "0" * 32
_CLEANUP_S = 30


@dataclass(frozen=True, slots=True)
class RangeAnswer:
    """What the endpoint itself answered to a range GET with If-Match: nothing checked, nothing hidden."""

    status: int
    etag: str
    size: int


class Probeable(Store, Protocol):
    """A Store that also tells what the server answers, before lazyfs checks the answer by itself."""

    async def range_answer(self, key: str, span: Range, if_match: str) -> RangeAnswer:
        """The server's own answer, 200, 206 or 412; `if_match` is an ETag without quotes. Other errors raise."""
        ...


class Renewable(Probeable, Protocol):
    """One whose credentials may expire."""

    @property
    def credentials_version(self) -> int:
        """Another number whenever requests begin to be signed with other credentials."""
        ...

    async def renew_credentials(self, version: int) -> bool:
        """Whether there are other credentials now than those of `version`; they are looked for where they came from."""
        ...


async def check_bucket(store: Store) -> None:
    """Raise the clear error of a bucket that does not exist, is not ours or cannot be reached; else nothing."""
    await store.list_page("", limit=1)


async def probe(store: Probeable, *, writable: bool, sample: ObjectInfo | None) -> Capabilities:
    """What the endpoint was seen to do.

    `writable` tries everything on a key of its own, which it always deletes. Otherwise reads are tried on `sample`,
    an object of the bucket that is not empty; without one the defaults are assumed.
    """
    if writable:
        return await _probe_by_writing(store)
    if sample is not None and sample.size > 0:
        range_206, if_match = await _probe_reads(store, sample.key, sample.etag, sample.size)
        return Capabilities(range_206=range_206, if_match_get=if_match, conditional_put=False)
    return Capabilities(conditional_put=False)


async def _probe_by_writing(store: Probeable) -> Capabilities:
    key = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    try:
        etag = await store.put(key, _BODY)
        range_206, if_match = await _probe_reads(store, key, etag, len(_BODY))
        conditional = await _refuses(store, key, Condition(absent=True))
        conditional = conditional and await _refuses(store, key, Condition(etag=_WRONG_ETAG))
        return Capabilities(range_206=range_206, if_match_get=if_match, conditional_put=conditional)
    finally:
        with trio.CancelScope(deadline=trio.current_time() + _CLEANUP_S, shield=True), contextlib.suppress(StoreError):
            await store.delete(key)


async def _probe_reads(store: Probeable, key: str, etag: str, size: int) -> tuple[bool, bool]:
    """Whether a range is answered with 206, and whether a wrong If-Match is refused."""
    span = Range(size // 2, size // 2 + 1)
    right = await store.range_answer(key, span, etag)
    wrong = await store.range_answer(key, span, _WRONG_ETAG)
    return right.status == 206 and right.size == 1, wrong.status == 412


async def _refuses(store: Store, key: str, condition: Condition) -> bool:
    try:
        await store.put(key, _REFUSED, condition=condition)
    except PreconditionFailedError:
        return True
    return False
