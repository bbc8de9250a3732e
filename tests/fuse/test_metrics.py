"""`--metrics-port` on real mounts: the numbers agree with what programs read and with what passes a proxy, and the
dashboard, the alerts and the operations guide know no others."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import urllib.request
from collections import Counter

import pytest
import yaml
from minio import Minio
from prometheus_client.parser import text_string_to_metric_families

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import ROOT, Mount, drop_page_cache, is_mounted, until
from tests.fuse.trees import put, random_bytes
from tests.proxy import proxied
from tests.servers import Server
from tests.test_metrics import values

MIB = 1024**2


def scrape(m: Mount) -> dict[tuple[str, ...], float]:
    """Each series by name and label values."""
    url = m.status()["metrics"]
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.status == 200
        return values(answer.read())


def by_label(found: dict[tuple[str, ...], float], name: str) -> dict[str, float]:
    return {key[1]: value for key, value in found.items() if key[0] == name and value}


def test_the_numbers_are_what_was_read_and_what_was_sent(
    mount: Mounter, client: Minio, bucket: str, server: Server
) -> None:
    small = {f"small/{number:02}": random_bytes(10_000 + number, number) for number in range(20)}
    large = random_bytes(3 * MIB + 77, 99)
    for key, data in {**small, "large": large}.items():
        put(client, bucket, key, data)
    total = len(large) + sum(map(len, small.values()))
    with proxied(server) as proxy:
        m = mount("--metrics-port", "0", on=proxy.server)
        m.wait_imported()
        before, sent = scrape(m), proxy.count()
        for key, data in small.items():
            assert (m / key).read_bytes() == data
        assert (m / "large").read_bytes() == large
        m.wait_closed()
        after = scrape(m)

        read = Counter(by_label(after, "lazyfs_read_bytes_total"))
        read.subtract(by_label(before, "lazyfs_read_bytes_total"))
        assert sum(read.values()) == total
        assert set(+read) <= {"s3", "memory"}
        assert read["s3"] > 0
        requests = Counter(by_label(after, "lazyfs_s3_requests_total"))
        requests.subtract(by_label(before, "lazyfs_s3_requests_total"))
        assert requests.total() == proxy.count() - sent > 20
        assert by_label(after, "lazyfs_s3_requests_total")["get"] == proxy.count("get")
        assert by_label(after, "lazyfs_fetched_bytes_total")["s3"] >= total
        assert after[("lazyfs_read_stalls_total",)] > 0
        assert 0 < after[("lazyfs_read_stall_seconds_total",)] < 60
        assert after[("lazyfs_reads_waiting",)] == 0
        waited = by_label(after, "lazyfs_read_wait_seconds_count")
        assert set(waited) == {"s3"}
        assert waited["s3"] == after[("lazyfs_read_stalls_total",)]
        sums = by_label(after, "lazyfs_read_wait_seconds_sum")
        assert sums["s3"] == pytest.approx(after[("lazyfs_read_stall_seconds_total",)])
        assert after[("lazyfs_known_files",)] == 21
        assert after[("lazyfs_import_state", "done")] == 1
        assert after[("lazyfs_cache_used_bytes", "memory")] > 0
        assert after[("process_resident_memory_bytes",)] > 0

        told = m.lazyfs("status", m.path).stdout
        assert m.status()["metrics"] in told

        until(lambda: scrape(m)[("lazyfs_cache_used_bytes", "disk")] >= total, "all is on the disk")
        m.umount()
        again = mount("--metrics-port", "0", on=proxy.server)
        gets = proxy.count("get")
        assert (again / "large").read_bytes() == large
        again.wait_closed()
        found = by_label(scrape(again), "lazyfs_read_bytes_total")
        assert sum(found.values()) == len(large)
        assert set(found) <= {"disk", "memory"}
        assert proxy.count("get") == gets


def test_a_reader_that_waits_shows_while_it_waits(mount: Mounter, client: Minio, bucket: str, server: Server) -> None:
    put(client, bucket, "f", b"x" * 1000)
    with proxied(server) as proxy:
        m = mount("--metrics-port", "0", on=proxy.server)
        m.wait_imported()
        released = threading.Event()
        proxy.hold = lambda seen: released if seen.kind == "get" else None
        reader = threading.Thread(target=(m / "f").read_bytes)
        reader.start()
        try:
            until(lambda: scrape(m)[("lazyfs_reads_waiting",)] == 1, "a read waits")
        finally:
            released.set()
            reader.join()
        found = scrape(m)
        assert found[("lazyfs_reads_waiting",)] == 0
        assert found[("lazyfs_read_stall_seconds_total",)] > 0


def test_what_waits_for_its_upload_is_in_the_metrics(
    mount: Mounter, client: Minio, bucket: str, server: Server
) -> None:
    with proxied(server) as proxy:
        m = mount("--metrics-port", "0", "--write-back", on=proxy.server, expect_log=["will be tried again"])
        assert scrape(m)[("lazyfs_writeback_pending_changes",)] == 0
        proxy.refuse = lambda seen: (403, "AccessDenied") if seen.kind == "put" else None
        (m / "f").write_bytes(b"x" * 1000)
        found = until(
            lambda: (now := scrape(m))[("lazyfs_writeback_failed_changes",)] and now, "the upload fails and shows"
        )
        assert found[("lazyfs_writeback_pending_changes",)] == 1
        assert found[("lazyfs_writeback_pending_bytes",)] == 1000
        assert found[("lazyfs_writeback_oldest_seconds",)] > 0
        assert found[("lazyfs_spool_used_bytes",)] >= 1000
        proxy.refuse = lambda _seen: None
        m.wait_uploaded()
        found = scrape(m)
        assert found[("lazyfs_writeback_failed_changes",)] == found[("lazyfs_writeback_oldest_seconds",)] == 0
        drop_page_cache()
        assert (m / "f").read_bytes() == b"x" * 1000
        m.wait_closed()
        assert sum(by_label(scrape(m), "lazyfs_read_bytes_total").values()) == 1000


def test_only_this_machine_may_ask_unless_told_otherwise(mount: Mounter) -> None:
    m = mount("--metrics-port", "0")
    url = m.status()["metrics"]
    assert url.startswith("http://127.0.0.1:")
    port = int(url.rpartition(":")[2].partition("/")[0])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)} - {"127.0.0.1"}
    for address in {*others, "127.0.0.2"}:
        with contextlib.closing(socket.socket()) as stranger:
            assert stranger.connect_ex((address, port)) != 0
    m.umount()
    with contextlib.closing(socket.socket()) as late:
        assert late.connect_ex(("127.0.0.1", port)) != 0, "it ends with the mount"


def test_a_port_in_use_is_refused_before_anything_is_mounted(mount: Mounter, bucket: str, server: Server) -> None:
    m = mount("--metrics-port", "0")
    port = m.status()["metrics"].rpartition(":")[2].partition("/")[0]
    second = m.path.parent / "second"
    second.mkdir()
    cache = str(m.path.parent / "second-cache")
    done = m.lazyfs(
        *("mount", bucket, second, "--endpoint-url", server.endpoint_url, "--cache-dir", cache, "--metrics-port", port)
    )
    assert done.returncode == 1
    assert done.stderr == f"lazyfs: cannot serve metrics on 127.0.0.1 port {port}: Address already in use\n"
    assert not is_mounted(second)


# -- the examples of docs/ ------------------------------------------------------------------------------------------

DOCS = ROOT / "docs"
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text())
ALERTS = [rule for group in yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
OPERATIONS = (DOCS / "operations.md").read_text()


def expressions() -> list[str]:
    """Every query of the dashboard and the alerts."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    variables = [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"][1:]]
    return [*panels, *variables, *(rule["expr"] for rule in ALERTS)]


def test_every_metric_and_label_in_the_examples_is_in_a_real_scrape(mount: Mounter, server: Server) -> None:
    if server.name != "moto":
        pytest.skip("the endpoint does not matter")
    m = mount("--metrics-port", "0", "--write-back", "--preload")
    with urllib.request.urlopen(m.status()["metrics"], timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples]
    names = {sample.name for sample in samples}
    labels = {(sample.name, *pair) for sample in samples for pair in sample.labels.items()}
    by = {label for _, label, _ in labels} | {"instance"}  # which Prometheus adds
    for text in expressions():
        used = set(re.findall(r"\b(?:lazyfs|process)_\w+", text))
        assert used, text
        assert used <= names, text
        for name, label, value in re.findall(r'(\w+)\{(\w+)="(\w+)"\}', text):
            assert (name, label, value) in labels, text
        for grouped in re.findall(r"(?:by|ignoring) ?\(([\w, ]+)\)", text):
            assert set(grouped.split(", ")) <= by, text
    told = set(re.findall(r"\b(?:lazyfs|process)_[a-z_]*[a-z]\b", OPERATIONS))
    assert len(told) > 15
    assert told <= names, sorted(told - names)


def test_alerts_are_explained() -> None:
    for rule in ALERTS:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert f"`{rule['alert']}`" in OPERATIONS, rule["alert"]


def test_the_dashboard_has_panels_that_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = set()
    for panel in panels:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        taken = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not taken & places, panel["title"]
        places |= taken
