"""What `lazyfs report` says of a run, for a person: the daemon's answer in, rows out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lazyfs.core.passes import LATEST
from lazyfs.core.units import format_duration, format_size

Report = Mapping[str, Any]

TIERS = ("memory", "disk", "shared", "s3", "spool")
SLOWEST_FIRST = ("s3", "shared", "disk", "spool", "failed")


def title(report: Report) -> str:
    """Which mount, and since when."""
    bucket = f"{report['bucket']}/{report.get('prefix', '')}".rstrip("/")
    began = "the mount began" if report["since"] == "mount" else "lazyfs report --reset"
    return f"{report['mountpoint']}  {bucket}, {format_duration(report['elapsed_s'])} since {began}"


def rows(report: Report) -> Iterator[tuple[str, str]]:
    """Name and value of each line; a name that begins with spaces belongs to the one above."""
    yield "listing", _listing(report["listing"])
    yield from _beginning(report)
    yield from _waits(report["waits"], report["elapsed_s"])
    for one in report["passes"]:
        yield _name_of_pass(one["pass"]), _pass(one)
    yield from _s3(report["s3"], report["file_mode"])
    yield from _places(report)


def _listing(listing: Report) -> str:
    told = f"{listing['state']}, {listing['objects']:,} objects in {format_duration(listing['elapsed_s'])}"
    return f"{told}: {listing['error']}" if listing.get("error") else told


def _beginning(report: Report) -> Iterator[tuple[str, str]]:
    beginning = report["beginning"]
    opened, began = beginning["first_open_s"], "the mount began" if report["since"] == "mount" else "the reset"
    if opened is None:
        yield "first open", "not yet"
        return
    yield "first open", f"{format_duration(opened)} after {began}"
    for name, told in (
        ("byte", ""),
        ("batch", f": {beginning['batch_files']} files read and closed, or {format_size(beginning['batch_bytes'])}"),
    ):
        at = beginning[f"first_{name}_s"]
        yield f"first {name}", "not yet" if at is None else f"{format_duration(at - opened)} after that{told}"


def _waits(waits: Report, elapsed_s: float) -> Iterator[tuple[str, str]]:
    share = waits["anybody_s"] / elapsed_s if elapsed_s > 0 else 0.0
    told = f"{format_duration(waits['anybody_s'])} with a reader waiting, {share:.0%} of the time"
    yield "stalled", f"{told}; {format_duration(waits['readers_s'])} of all readers together"
    if waits["all"]["count"]:
        yield "waits", _quantiles(waits["all"])
    for tier in SLOWEST_FIRST:
        if tier in waits["tiers"]:
            yield f"  {tier}", _quantiles(waits["tiers"][tier])


def _quantiles(waits: Report) -> str:
    half, most = format_duration(waits["p50_s"]), format_duration(waits["p99_s"])
    return f"{waits['count']:,} reads: half within {half}, 99 of 100 within {most}"


def _name_of_pass(number: int) -> str:
    if number == 0:
        return "other opens"
    return f"pass {number}" + (" and later" if number == LATEST else "")


def _pass(one: Report) -> str:
    """The bytes by tier, and what lazyfs has not seen of the files' sizes."""
    by_tier, read = one["bytes"], sum(one["bytes"].values())
    parts = [f"{format_size(by_tier[tier])} {tier}" for tier in TIERS if by_tier.get(tier)]
    told = f"{format_size(read)} read" + (f" ({', '.join(parts)})" if parts else "")
    if not one["opens"]:
        return told
    told = f"{one['opens']:,} files of {format_size(one['file_bytes'])}; {told}"
    rest = one["file_bytes"] - read
    return told + (f"; {format_size(rest)} from the page cache, or not at all" if rest > 0 else "")


def _s3(s3: Report, file_mode: Report) -> Iterator[tuple[str, str]]:
    requests = sum(s3["requests"].values())
    told = f"{format_size(s3['read_bytes'])} fetched; {requests:,} requests of all kinds"
    if s3["busy_s"]:
        mean, best = _speed(s3["mean_bytes_per_s"]), _speed(s3["best_bytes_per_s"])
        told += f"; {mean} while fetching, {best} in the best second"
    yield "S3", told
    if file_mode["opened_s"] is not None:
        rate, opened = _speed(file_mode["bytes_per_s"]), format_size(file_mode["opened_bytes"])
        told = f"{opened} that were opened in {format_duration(file_mode['opened_s'])}"
        told += f", all {format_size(file_mode['listed_bytes'])} in {format_duration(file_mode['listed_s'])}"
        yield "File mode", f"would have downloaded first, at the best second's {rate}: {told}"


def _places(report: Report) -> Iterator[tuple[str, str]]:
    files, directories = report["files"], report["directories"]
    yield "never opened", f"{files['never_opened']:,} of {files['listed']:,} files"
    for number, row in enumerate(directories["hottest"]):
        told = f"{format_size(row['bytes']):>10}  {row['opens']:,} opens of {row['files']:,} files"
        yield "" if number else "hot", f"{told}  {row['path'] or '.'}{' and below' if row['is_sum'] else ''}"
    unread = directories["unread"]
    if unread is not None and unread["count"]:
        told = f"{unread['count']:,} directories, {unread['files']:,} files, {format_size(unread['bytes'])}"
        yield "cold", f"{told} of which nothing was opened; the largest:"
        for row in unread["largest"]:
            yield "", f"{format_size(row['bytes']):>10}  {row['files']:,} files  {row['path'] or '.'}"


def _speed(bytes_per_s: float) -> str:
    return f"{format_size(bytes_per_s)}/s"
