"""What `lazyfs doctor BUCKET` asks of the bucket's server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import trio

from lazyfs.cli.checks import Finding, Level
from lazyfs.config import BucketConfig
from lazyfs.config.endpoint import s3_settings
from lazyfs.core.errors import LazyfsError
from lazyfs.core.stats import Stats
from lazyfs.core.types import Capabilities, ObjectInfo
from lazyfs.store.probe import check_bucket, probe
from lazyfs.store.remote import S3Store, open_s3_store

CONNECTIONS = 4
"""Enough for one question at a time."""

_TIMEOUT_S = 60.0
_SAMPLED = 100
"""Keys looked at to find one that is not empty."""


def check_endpoint(config: BucketConfig, *, writable: bool) -> Iterator[Finding]:
    """Reach the bucket, then what its server was seen to do. `writable` tries writes too."""
    try:
        yield from trio.run(_examine, config, writable)
    except LazyfsError as error:
        yield Finding(Level.FAIL, f"bucket {config.name}: {error}")
    except trio.TooSlowError:
        yield Finding(Level.FAIL, f"bucket {config.name}: no answer within {_TIMEOUT_S:.0f} s")


async def _examine(config: BucketConfig, writable: bool) -> list[Finding]:
    store = open_s3_store(s3_settings(config, max_connections=CONNECTIONS), stats=Stats())
    try:
        with trio.fail_after(_TIMEOUT_S):
            await check_bucket(store)
            start = time.perf_counter()
            sample = await _sample(store, config.prefix)
            elapsed_ms = (time.perf_counter() - start) * 1000
            seen = await probe(store, writable=writable, sample=sample)
    finally:
        await store.aclose()
    reached = Finding(Level.OK, f"bucket {config.name} can be listed; one page took {elapsed_ms:.0f} ms")
    return [reached, *judge(seen, read_tried=writable or sample is not None, write_tried=writable)]


def judge(seen: Capabilities, *, read_tried: bool, write_tried: bool) -> Iterator[Finding]:
    """What it means for the user that the server does or does not do these things."""
    if not read_tried:
        yield Finding(Level.WARN, "no object to try reads on", "put one there, or run again with --try-writes")
    else:
        yield _supports(seen.range_206, "ranges (206)", "data is read through boto3, at four times the CPU")
        yield _supports(
            seen.if_match_get, "If-Match on reads", "lazyfs compares versions itself; a race is noticed later"
        )
    if write_tried:
        yield _supports(seen.conditional_put, "conditional writes", "two writers of one key: the last wins, silently")
    else:
        yield Finding(Level.OK, "conditional writes were not tried; --try-writes does, with an object of its own")


def _supports(yes: bool, what: str, cost: str) -> Finding:
    if yes:
        return Finding(Level.OK, f"the server honours {what}")
    return Finding(Level.WARN, f"the server does not honour {what}", cost)


async def _sample(store: S3Store, prefix: str) -> ObjectInfo | None:
    page = await store.list_page(prefix, limit=_SAMPLED)
    return next((info for info in page.objects if info.size > 0), None)
