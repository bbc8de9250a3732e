"""The page for Prometheus: its HTTP, and that each number is the status's."""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from lazyfs.control import http
from lazyfs.control.http import MAX_CLIENTS, served_metrics
from lazyfs.control.metrics import metrics_text
from lazyfs.core.errors import StartupError

STATUS: dict[str, Any] = {
    "mountpoint": '/mnt/"odd\\ name"\n\udcff',
    "bucket": "b",
    "prefix": "p/",
    "uptime_s": 12.5,
    "read_only": False,
    "files": 3,
    "bytes": 30,
    "open_handles": 2,
    "lost_and_found": [("k", "place")],
    "import": {"state": "failed", "objects": 7, "directories": 1, "requests": 4, "rate": 0.0, "elapsed_s": 1.5},
    "preload": {"state": "full", "files": 5, "bytes": 50, "failures": 1, "error": "x"},
    "cache": {
        "memory": {"used": 1, "limit": 2},
        "disk": {"used": 3, "limit": 4, "on": False},
        "shared": {"where": "w", "state": "reading", "last_error": "", "pending": 0},
    },
    "write_back": {"changes": 6, "bytes": 600, "oldest_s": 61.5, "failed": [], "failed_changes": 2},
    "spool": {"used": 600, "limit": 1000},
    "connections": {"in_flight": 1, "limit": 32},
    "stats": {"read.bytes.s3": 10, "read.stall_ns": 2_500_000_000, "read.stalls": 4, "s3.requests.get": 9},
    "waits": {
        "s3": {
            "count": 4,
            "sum_s": 2.5,
            "p50_s": 0.032768,
            "p99_s": 1.966080,
            "max_s": 1.966080,
            "buckets": [[0.032768, 3], [1.966080, 1]],
        }
    },
    "skipped_keys": 8,
    "policy": {"write_back": True, "fsync": "local"},
}


def values(text: bytes) -> dict[tuple[str, ...], float]:
    """The value of each series, by name and label values."""
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def status(_arguments: dict[str, Any]) -> dict[str, Any]:
    return STATUS


async def asked(url: str, request: bytes) -> bytes:
    """All that comes back for `request`."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        return b"".join([part async for part in stream])


def test_each_number_is_the_status_in_base_units() -> None:
    found = values(metrics_text(STATUS))
    assert {key: value for key, value in found.items() if key[0] == "lazyfs_read_bytes_total"} == {
        ("lazyfs_read_bytes_total", "memory"): 0,
        ("lazyfs_read_bytes_total", "disk"): 0,
        ("lazyfs_read_bytes_total", "shared"): 0,
        ("lazyfs_read_bytes_total", "s3"): 10,
        ("lazyfs_read_bytes_total", "spool"): 0,
    }
    expected = {
        ("lazyfs_read_stall_seconds_total",): 2.5,
        ("lazyfs_read_stalls_total",): 4,
        ("lazyfs_read_wait_seconds_bucket", "0.016384", "s3"): 0,
        ("lazyfs_read_wait_seconds_bucket", "0.032768", "s3"): 3,
        ("lazyfs_read_wait_seconds_bucket", "1.048576", "s3"): 3,
        ("lazyfs_read_wait_seconds_bucket", "2.097152", "s3"): 4,
        ("lazyfs_read_wait_seconds_bucket", "+Inf", "s3"): 4,
        ("lazyfs_read_wait_seconds_bucket", "+Inf", "failed"): 0,
        ("lazyfs_read_wait_seconds_count", "s3"): 4,
        ("lazyfs_read_wait_seconds_sum", "s3"): 2.5,
        ("lazyfs_s3_requests_total", "get"): 9,
        ("lazyfs_s3_requests_total", "put"): 0,
        ("lazyfs_cache_used_bytes", "disk"): 3,
        ("lazyfs_cache_limit_bytes", "memory"): 2,
        ("lazyfs_cache_on", "memory"): 1,
        ("lazyfs_cache_on", "disk"): 0,
        ("lazyfs_cache_on", "shared"): 1,
        ("lazyfs_import_state", "failed"): 1,
        ("lazyfs_import_state", "done"): 0,
        ("lazyfs_import_objects",): 7,
        ("lazyfs_preload_state", "full"): 1,
        ("lazyfs_writeback_pending_changes",): 6,
        ("lazyfs_writeback_pending_bytes",): 600,
        ("lazyfs_writeback_oldest_seconds",): 61.5,
        ("lazyfs_writeback_failed_changes",): 2,
        ("lazyfs_lost_files",): 1,
        ("lazyfs_skipped_keys",): 8,
        ("lazyfs_mount_info", "rw", "b", "local", STATUS["mountpoint"].replace("\udcff", "?"), "p/", "true"): 1,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_every_kind_of_request_that_the_store_counts_has_its_series() -> None:
    counted = {
        kind
        for path in (Path(__file__).parent.parent / "lazyfs").rglob("*.py")
        for kind in re.findall(r'"s3\.requests\.(\w+)"', path.read_text())
    }
    shown = {key[1] for key in values(metrics_text(STATUS)) if key[0] == "lazyfs_s3_requests_total"}
    assert shown == counted


def test_what_a_mount_does_not_have_is_zero_or_absent() -> None:
    bare = {**STATUS, "preload": None, "write_back": None, "spool": None, "stats": {}, "waits": {}}
    bare["cache"] = {"memory": {"used": 1, "limit": 2}, "disk": None, "shared": None}
    found = values(metrics_text(bare))
    assert found[("lazyfs_writeback_pending_changes",)] == 0
    assert found[("lazyfs_spool_used_bytes",)] == 0
    assert ("lazyfs_cache_used_bytes", "disk") not in found
    assert ("lazyfs_preload_files",) not in found


async def test_a_scrape_and_what_is_none() -> None:
    async with served_metrics("127.0.0.1", 0, status) as url:
        assert url is not None
        head, _, body = (await asked(url, b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
        assert f"Content-Length: {len(body)}".encode() in head
        assert values(body)[("lazyfs_known_files",)] == 3
        assert (await asked(url, b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
        assert (await asked(url, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert (await asked(url, b"GET /etc HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert (await asked(url, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
        assert (await asked(url, b"\r\n\r\n")).startswith(b"HTTP/1.1 405")
        with contextlib.suppress(trio.BrokenResourceError):  # it may be told either way
            assert await asked(url, b"x" * 100_000) == b""
    with pytest.raises(OSError, match="connect"):
        await asked(url, b"")


async def test_silent_clients_hold_no_place_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 0.2)
    async with served_metrics("127.0.0.1", 0, status) as url, trio.open_nursery() as nursery:
        assert url is not None
        port = int(url.rpartition(":")[2].partition("/")[0])
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(MAX_CLIENTS)]
        for stream in silent:
            nursery.start_soon(stream.receive_some)
    async with served_metrics("127.0.0.1", 0, status) as url:
        assert url is not None
        assert b" 200 OK" in await asked(url, b"GET /metrics HTTP/1.1\r\n\r\n")
    for stream in silent:
        await stream.aclose()


@pytest.mark.expect_warnings
async def test_a_scrape_that_fails_is_logged_and_the_next_one_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Any] = [{}, STATUS]

    async def first_wrong(_arguments: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = answers.pop(0)
        return answer

    async with served_metrics("127.0.0.1", 0, first_wrong) as url:
        assert url is not None
        with caplog.at_level(logging.ERROR):
            assert await asked(url, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        assert "a scrape failed" in caplog.text
        assert b" 200 OK" in await asked(url, b"GET /metrics HTTP/1.1\r\n\r\n")


async def test_a_port_in_use_or_an_address_that_is_none() -> None:
    async with served_metrics("127.0.0.1", 0, status) as url:
        assert url is not None
        port = int(url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(
            StartupError, match=f"cannot serve metrics on 127.0.0.1 port {port}: Address already in use"
        ):
            async with served_metrics("127.0.0.1", port, status):
                pass
    with pytest.raises(StartupError, match=r"cannot serve metrics on 192\.0\.2\.1 port"):
        async with served_metrics("192.0.2.1", 0, status):
            pass


async def test_without_a_port_nothing_listens() -> None:
    async with served_metrics("127.0.0.1", None, status) as url:
        assert url is None
