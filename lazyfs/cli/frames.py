"""What `lazyfs top` shows of a mount: two statuses in, rows out. How far apart they are, the daemon's clock tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lazyfs.cli.backlog import backlog_of
from lazyfs.cli.output import shown
from lazyfs.core.histogram import Histogram
from lazyfs.core.units import format_duration, format_size

Report = Mapping[str, Any]

TIERS = ("memory", "disk", "shared", "s3", "spool")
_NEW: Report = {"read_bytes": 0, "written_bytes": 0, "waited_s": 0.0}
MAX_PROGRAMS = 8
"""That a frame has room for."""
_BAR = 20
_STEPS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Row:
    """One line; `alarm` where somebody should look."""

    name: str
    value: str
    alarm: bool = False


class Rates:
    """How fast counters grew between two statuses of one daemon; 0 where there is only one."""

    def __init__(self, before: Report | None, after: Report) -> None:
        same = before is not None and before.get("pid") == after.get("pid") and "uptime_s" in before
        self._before: Report = before["stats"] if before is not None and same else after["stats"]
        self._after: Report = after["stats"]
        self.seconds = after["uptime_s"] - before["uptime_s"] if before is not None and same else 0.0

    def of(self, *names: str) -> float:
        """A second, of all these counters together."""
        grown = sum(self._after.get(name, 0) - self._before.get(name, 0) for name in names)
        return self.a_second(grown)

    def a_second(self, grown: float) -> float:
        """What something that has grown by so much between the two has grown by in a second."""
        return float(grown / self.seconds) if self.seconds > 0 else 0.0

    def read(self) -> float:
        """Bytes a second that programs read."""
        return self.of(*(f"read.bytes.{tier}" for tier in TIERS))


def title(report: Report) -> str:
    """Which mount this is."""
    bucket = f"{report['bucket']}/{report.get('prefix', '')}".rstrip("/")
    age = f", {format_duration(report['uptime_s'])}" if "uptime_s" in report else ""
    access = ", read-only" if report.get("read_only") else ""
    return f"{report['mountpoint']}  {bucket}{access}{age}"


def rows(before: Report | None, after: Report, history: Sequence[float] = ()) -> Iterator[Row]:
    """The lines of one mount. `history` is the bytes a second of the frames before, oldest first."""
    if after["state"] == "dead":
        yield Row(
            "state", f"dead: process {after['pid']} is gone; run: lazyfs umount {after['mountpoint']}", alarm=True
        )
        return
    if after["state"] == "silent":
        yield Row("state", f"not answering: {after.get('error', '')}", alarm=True)
        return
    rates = Rates(before, after)
    yield from _reading(rates, after, history)
    yield from _waits(before, after)
    yield from _programs(rates, before, after)
    yield from _requests(rates, after)
    yield from _writing(rates, after)
    yield from _keeping(after)
    yield from _listing(after)


def _reading(rates: Rates, after: Report, history: Sequence[float]) -> Iterator[Row]:
    stats, total = after["stats"], rates.read()
    read = sum(stats.get(f"read.bytes.{tier}", 0) for tier in TIERS)
    yield Row("read", f"{'':{_BAR}} {_speed(total):>12}  {format_size(read):>10} in all  {sparkline(history)}".rstrip())
    for tier in TIERS:
        name = f"read.bytes.{tier}"
        if stats.get(name):
            share = round(_BAR * rates.of(name) / total) if total else 0
            yield Row(f"  {tier}", f"{'█' * share:{_BAR}} {_speed(rates.of(name)):>12}  {format_size(stats[name]):>10}")
    waiting, stalls = rates.of("read.stall_ns") / 1e9, rates.of("read.stalls")
    mean = f", {format_duration(waiting / stalls)} each" if stalls else ""
    now = stats.get("read.waiting", 0)
    yield Row("waiting", f"{waiting:.1f} readers on average{mean}; {now} now", alarm=waiting >= 1)


def _waits(before: Report | None, after: Report) -> Iterator[Row]:
    """How long reads that had to wait waited, in all and now."""
    for tier, told in sorted(after.get("waits", {}).items()):
        earlier = {} if before is None or before.get("pid") != after.get("pid") else before.get("waits", {})
        now = Histogram.of_told(told).since(Histogram.of_told(earlier[tier]) if tier in earlier else None)
        lately = f"; now {_within(now.told())}" if earlier and now.count else ""
        yield Row(f"  for {tier}", f"{told['count']:,}: {_within(told)}{lately}")


def _within(told: Report) -> str:
    return f"half within {format_duration(told['p50_s'])}, 99 of 100 within {format_duration(told['p99_s'])}"


def _programs(rates: Rates, before: Report | None, after: Report) -> Iterator[Row]:
    """Who reads and writes what: those that do most of it now, then those that did something last."""
    earlier = {_identity(one): one for one in (before or {}).get("programs", ())}
    busy = []
    for place, one in enumerate(after.get("programs", ())):
        known = earlier.get(_identity(one), _NEW if one["age_s"] < rates.seconds else one)
        read, written, waited = (
            rates.a_second(one[name] - known[name]) for name in ("read_bytes", "written_bytes", "waited_s")
        )
        if one["open_files"] or read or written or waited:
            busy.append((-read - written, place, _program(one, read, written, waited)))
    for number, (_, _, told) in enumerate(sorted(busy)[:MAX_PROGRAMS]):
        yield Row("" if number else "programs", shown(told))


def _program(one: Report, read: float, written: float, waited: float) -> str:
    parts = [
        f"{_speed(rate)}, {format_size(size)} {verb}"
        for verb, rate, size in (("read", read, one["read_bytes"]), ("written", written, one["written_bytes"]))
        if size
    ]
    parts += [f"{waited:.1f} readers waiting"] if waited >= 0.05 else []
    paths = [file["path"] + (" (writing)" if file["writable"] else "") for file in one["files"]]
    if more := one["open_files"] - len(paths):
        paths.append(f"and {more:,} more")
    who = f"{one['name'] or 'unknown'} ({one['pid']})"
    return "  ".join([who, "; ".join(parts) or "nothing read yet", *([", ".join(paths)] if paths else [])])


def _identity(program: Report) -> tuple[int, int]:
    return program["pid"], program["started"]


def _requests(rates: Rates, after: Report) -> Iterator[Row]:
    names = sorted(name for name in after["stats"] if name.startswith("s3.requests."))
    kinds = [f"{name.rpartition('.')[2]} {rates.of(name):.0f}/s" for name in names if rates.of(name)]
    yield Row("requests", f"{rates.of(*names):.0f}/s" + (f": {', '.join(kinds)}" if kinds else ""))
    connections = after["connections"]
    flying = f"{connections['in_flight']} range GETs of at most {connections['limit']}"
    moved = f"{_speed(rates.of('s3.bytes.read'))} down, {_speed(rates.of('s3.bytes.written'))} up"
    yield Row("S3", f"{moved}; {flying}")
    refused, again = rates.of("s3.throttles"), rates.of("s3.retries")
    if refused or again:
        yield Row("trouble", f"{again:.1f}/s sent again, {refused:.1f}/s refused as too many", alarm=True)


def _writing(rates: Rates, after: Report) -> Iterator[Row]:
    waiting, spool = after.get("write_back"), after.get("spool")
    if waiting is not None:
        failed = waiting.get("failed_changes", 0)
        told = backlog_of(waiting) if waiting["changes"] else "nothing"
        if waiting["changes"] and (up := rates.of("s3.bytes.written")):
            told += f"; {format_duration(waiting['bytes'] / up)} at this rate"
        yield Row("to upload", f"{told}; {failed:,} failed" if failed else told, alarm=bool(failed))
    if spool and spool["used"]:
        yield Row("spool", _usage(spool), alarm=spool["used"] > 0.9 * spool["limit"])
    if lost := after.get("lost_and_found"):
        yield Row("lost races", f"{len(lost):,} files in .lazyfs-lost+found; lazyfs status names them", alarm=True)


def _keeping(after: Report) -> Iterator[Row]:
    cache = after["cache"]
    for tier in ("memory", "disk"):
        if usage := cache.get(tier):
            is_on = usage.get("on", True)
            yield Row(f"{tier} tier", _usage(usage) + ("" if is_on else "; not in use"), alarm=not is_on)
    if shared := cache.get("shared"):
        words = {"on": "in use", "off": "not in use", "reading": "read only"}
        told = words.get(shared["state"], shared["state"])
        yield Row("shared tier", f"{shared['where']}, {told}", alarm=shared["state"] != "on")
    yield Row("open", f"{after['open_handles']:,} files")


def _listing(after: Report) -> Iterator[Row]:
    progress = after["import"]
    told = f"{progress['state']}, {progress['objects']:,} objects"
    if progress["state"] == "running":
        told += f", {progress['rate']:,.0f}/s"
    failed = progress["state"] == "failed"
    yield Row("import", f"{told}: {progress['error']}" if failed else told, alarm=failed)
    if preload := after.get("preload"):
        told = f"{preload['state']}, {preload['files']:,} files, {format_size(preload['bytes'])}"
        yield Row("preload", told, alarm=bool(preload["failures"]))


def sparkline(history: Sequence[float]) -> str:
    """One step a value, the highest of them full; empty if there is nothing to see."""
    highest = max(history, default=0.0)
    if highest <= 0:
        return ""
    return "".join(_STEPS[min(len(_STEPS) - 1, int(value / highest * len(_STEPS)))] for value in history)


def _usage(usage: Report) -> str:
    used, limit = usage["used"], usage["limit"]
    share = f"{used / limit:.0%}" if limit else "-"
    return f"{format_size(used)} of {format_size(limit)} ({share})"


def _speed(bytes_per_s: float) -> str:
    return f"{format_size(bytes_per_s)}/s"
