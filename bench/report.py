"""What a run found: tables for people, JSON for programs, a plot. Losses are named, not hidden."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.dataset import Scale
from bench.workloads import Sample

PEERS = ("rclone full", "rclone off", "s3fs", "mount-s3", "juicefs")
ORDER = ("raw", "lazyfs", *PEERS, "download", "local disk")


@dataclass(slots=True)
class Cell:
    """One measurement of one arm. `rate` is in `unit`; `fetched` are bytes that the endpoint sent meanwhile."""

    arm: str
    endpoint: str
    state: str
    workload: str
    unit: str
    rate: float = 0.0
    ops: int = 0
    bytes: int = 0
    seconds: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    cpu_s: float = 0.0
    peak_rss_mib: float = 0.0
    requests: int = 0
    fetched: int = 0
    arrived_s: float | None = None
    error: str = ""

    def take(self, sample: Sample) -> None:
        """Fill in what was measured."""
        self.ops, self.bytes, self.seconds = sample.ops, sample.bytes, sample.seconds
        self.rate = (sample.bytes / 1e6 if self.unit == "MB/s" else sample.ops) / max(sample.seconds, 1e-9)
        if len(sample.latencies_s) > 1:
            cuts = statistics.quantiles(sample.latencies_s, n=100, method="inclusive")
            self.p50_ms, self.p99_ms = cuts[49] * 1e3, cuts[98] * 1e3


def machine() -> str:
    """Where this runs."""
    return f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores"


@dataclass(slots=True)
class Report:
    """All cells of a run, and what they were measured with."""

    options: argparse.Namespace
    scale: Scale
    cells: list[Cell] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> bool:
        """Whether lazyfs, or the bench itself, told wrong bytes or failed."""
        return any(cell.error and cell.arm in ("lazyfs", "raw", "download", "local disk") for cell in self.cells)

    def add(self, cell: Cell) -> None:
        """Keep a measurement."""
        self.cells.append(cell)

    def fail(self, arm: str, endpoint: str, why: str) -> None:
        """An arm that could not go on."""
        self.failures.append(f"{arm} on {endpoint}: {why}")

    def write(self, out: Path) -> None:
        """Print the tables; leave results.json, results.md and results.png in `out`."""
        self.save(out)
        print(self.markdown())
        self._plot(out / "results.png")

    def save(self, out: Path) -> None:
        """Leave what is known by now as results.json and results.md in `out`: a run may be cut short."""
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.md").write_text(self.markdown())
        (out / "results.json").write_text(json.dumps(self._facts(), indent=1))

    def _facts(self) -> dict[str, object]:
        return {
            "machine": machine(),
            "parameters": {key: value for key, value in vars(self.options).items() if key != "endpoint_url"},
            "scale": asdict(self.scale),
            "versions": self.versions,
            "missing": self.missing,
            "failures": self.failures,
            "cells": [asdict(cell) for cell in self.cells],
        }

    def markdown(self) -> str:
        """Tables by endpoint and state, then what each row cost, then where lazyfs loses."""
        parts = [f"{machine()}. Scale {self.options.scale:g}, {self.options.rounds} round(s), medians.\n"]
        for endpoint in _in_order(cell.endpoint for cell in self.cells):
            for state in _in_order(cell.state for cell in self.cells):
                parts += self._table(endpoint, state)
            parts += self._costs(endpoint)
        parts += ["### Where lazyfs loses to a peer\n", *(self._losses() or ["nowhere in this run"]), ""]
        parts += [f"- {arm} {version}" for arm, version in self.versions.items()]
        parts += [f"- {arm}: not taking part: {why}" for arm, why in self.missing.items()]
        parts += [f"- {arm}: {note}" for arm, note in self.notes.items() if note]
        parts += [f"- failed: {line}" for line in self.failures]
        return "\n".join(parts) + "\n"

    def _table(self, endpoint: str, state: str) -> list[str]:
        rows = self._rows(endpoint, state)
        arms = [arm for arm in ORDER if any(arm in row for row in rows.values())]
        if "lazyfs" not in arms and not rows:
            return []
        lines = [f"### {endpoint}, {state}\n", f"| workload | unit | {' | '.join(arms)} | lazyfs ÷ best peer |"]
        lines.append("| --- | --- |" + " ---: |" * (len(arms) + 1))
        for (workload, unit), row in rows.items():
            best = max((row[arm].rate for arm in PEERS if arm in row and not row[arm].error), default=0.0)
            ours = row.get("lazyfs")
            ratio = f"{ours.rate / best:.2f}" if ours and best and not ours.error else "–"
            told = [_told(row.get(arm)) for arm in arms]
            lines.append(f"| {workload} | {unit} | {' | '.join(told)} | {ratio} |")
        return [*lines, ""]

    def _costs(self, endpoint: str) -> list[str]:
        """What the cold rows cost beside time: per useful byte or per thousand operations."""
        rows = self._rows(endpoint, "cold")
        arms = [arm for arm in ORDER if arm in ("lazyfs", *PEERS) and any(arm in row for row in rows.values())]
        if not arms:
            return []
        head = f"### {endpoint}, cold: p50 / p99 ms · requests · bytes fetched per useful byte · CPU s per GiB or 1,000"
        lines = [head + "\n", f"| workload | {' | '.join(arms)} |", "| --- |" + " --- |" * len(arms)]
        for (workload, _), row in rows.items():
            lines.append(f"| {workload} | {' | '.join(_cost(row.get(arm)) for arm in arms)} |")
        peak = {arm: max((c.peak_rss_mib for c in self.cells if c.arm == arm), default=0) for arm in arms}
        lines.append(f"| peak RSS, MiB | {' | '.join(f'{peak[arm]:.0f}' for arm in arms)} |")
        return [*lines, ""]

    def _losses(self) -> list[str]:
        found = []
        for endpoint in _in_order(cell.endpoint for cell in self.cells):
            for state in _in_order(cell.state for cell in self.cells):
                for (workload, _), row in self._rows(endpoint, state).items():
                    ours = row.get("lazyfs")
                    peers = {arm: row[arm].rate for arm in PEERS if arm in row and not row[arm].error}
                    if ours is None or not peers:
                        continue
                    best = max(peers, key=lambda arm: peers[arm])
                    if ours.error:
                        found.append(f"- {endpoint}, {state}, {workload}: fails ({ours.error})")
                    elif ours.rate < peers[best]:
                        found.append(f"- {endpoint}, {state}, {workload}: {ours.rate / peers[best]:.2f} × {best}")
        return found

    def _rows(self, endpoint: str, state: str) -> dict[tuple[str, str], dict[str, Cell]]:
        """By workload and arm: the measurement with the median rate."""
        rounds: defaultdict[tuple[str, str], defaultdict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
        for cell in self.cells:
            if cell.endpoint == endpoint and cell.state == state:
                rounds[cell.workload, cell.unit][cell.arm].append(cell)
        return {
            key: {
                arm: sorted(cells, key=lambda c: (bool(c.error), c.rate))[len(cells) // 2] for arm, cells in row.items()
            }
            for key, row in rounds.items()
        }

    def _plot(self, path: Path) -> None:
        """lazyfs and its peers as shares of the raw client, cold."""
        try:
            import matplotlib as mpl  # noqa: PLC0415 - heavy, and only for this

            mpl.use("Agg")
            from matplotlib import pyplot  # noqa: PLC0415
        except ImportError:
            return
        names = _in_order(cell.endpoint for cell in self.cells if cell.arm == "raw")
        if not names:
            return  # nothing to be a share of
        figure, axes = pyplot.subplots(len(names), 1, figsize=(10, 4 * len(names)), squeeze=False)
        for axis, endpoint in zip(axes[:, 0], names, strict=True):
            rows = {key[0]: row for key, row in self._rows(endpoint, "cold").items() if "raw" in row}
            arms = [arm for arm in ("lazyfs", *PEERS) if any(arm in row for row in rows.values())]
            for number, arm in enumerate(arms):
                shares = [
                    row[arm].rate / row["raw"].rate if arm in row and row["raw"].rate else 0 for row in rows.values()
                ]
                at = [place + number * 0.8 / len(arms) for place in range(len(rows))]
                axis.bar(at, shares, width=0.8 / len(arms), label=arm)
            axis.set_xticks(
                [place + 0.3 for place in range(len(rows))], list(rows), rotation=30, ha="right", fontsize=8
            )
            axis.axhline(1, color="grey", linewidth=0.8)
            axis.set_ylabel("share of the raw client")
            axis.set_title(f"cold, {endpoint}")
            axis.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path, dpi=120)


def _told(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    if cell.error:
        return "fails"
    rate = f"{cell.rate:,.0f}" if cell.rate >= 10 else f"{cell.rate:.1f}"
    if cell.arrived_s is not None and cell.seconds and cell.arrived_s > cell.seconds * 1.5:
        rate += f" ({cell.arrived_s:.1f} s to the bucket)"
    return rate


def _cost(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    if cell.error:
        return cell.error.replace("|", "/")[:60]
    per = (
        cell.cpu_s / (cell.bytes / 2**30) if cell.unit == "MB/s" and cell.bytes else cell.cpu_s / max(cell.ops, 1) * 1e3
    )
    fetched = f"{cell.fetched / cell.bytes:.2f}" if cell.bytes and cell.fetched else "–"
    requests = str(cell.requests) if cell.requests else "–"
    latency = f"{cell.p50_ms:.1f} / {cell.p99_ms:.1f}" if cell.p50_ms else "–"
    return f"{latency} · {requests} · {fetched} · {per:.1f}"


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
