"""Status reports for a person's eyes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lazyfs.cli.backlog import backlog_of
from lazyfs.cli.output import shown
from lazyfs.core.units import format_duration, format_size

Report = Mapping[str, Any]


def show(reports: list[dict[str, Any]], *, terminal: bool) -> None:
    """Print one table a mount; without a terminal, plain lines of name and value."""
    console = Console(soft_wrap=not terminal, highlight=False, markup=False)
    for number, report in enumerate(reports):
        if number:
            console.print()
        # Keys, and what a server said, may hold what a terminal would obey.
        rows = [(shown(name), shown(value)) for name, value in rows_of(report)]
        if terminal:
            console.print(_table(report, rows))
        else:
            width = max(len(name) for name, _ in rows)
            console.print(shown(str(report["mountpoint"])))
            for name, value in rows:
                console.print(f"  {name:<{width}}  {value}")


def _table(report: Report, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=shown(str(report["mountpoint"])), title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def rows_of(report: Report) -> Iterator[tuple[str, str]]:
    """Name and value of each line of a report; what the daemon did not say is left out."""
    bucket = f"{report['bucket']}/{report.get('prefix', '')}".rstrip("/")
    yield "bucket", f"{bucket} on {report['endpoint']}" if report.get("endpoint") else bucket
    yield "state", _state(report)
    yield from _promises(report)
    yield from _contents(report)
    for name, count in (report.get("stats") or {}).items():
        if count:
            yield name.removesuffix("_ns"), _count(name, count)


def _count(name: str, count: int) -> str:
    if name.endswith("_ns"):
        return format_duration(count / 1e9)
    return format_size(count) if "bytes" in name.split(".") else f"{count:,}"


def _promises(report: Report) -> Iterator[tuple[str, str]]:
    """What this mount does and does not do."""
    if "read_only" in report:
        yield "access", "read-only" if report["read_only"] else "read and write"
    if report.get("policy"):
        yield "policy", ", ".join(_setting(name, value) for name, value in report["policy"].items())
    supports = report.get("endpoint_supports") or {}
    unneeded = ("conditional_put",) if report.get("read_only") else ()  # a read-only mount does not even try it
    if lacking := [name for name, there in supports.items() if not there and name not in unneeded]:
        yield "lacking", "the server does without " + ", ".join(lacking)
    if report.get("untuned"):
        yield "untuned", f"{', '.join(report['untuned'])}; lazyfs doctor says what it costs"
    if report.get("metrics"):
        yield "metrics", report["metrics"]


def _contents(report: Report) -> Iterator[tuple[str, str]]:
    """What it knows, keeps and is busy with."""
    if "files" in report:
        yield "known", f"{report['files']:,} files, {format_size(report.get('bytes', 0))}"
    if report.get("skipped_keys"):
        yield "skipped", f"{report['skipped_keys']:,} keys that cannot be a path"
    if report.get("import"):
        yield "import", _import(report["import"])
    if report.get("preload"):
        yield "preload", _preload(report["preload"])
    if trouble := (report.get("index") or {}).get("trouble"):
        yield "index", f"not in the cache directory any more: {trouble}"
    for tier in ("memory", "disk"):
        if usage := (report.get("cache") or {}).get(tier):
            yield tier, f"{format_size(usage['used'])} of {format_size(usage['limit'])}{_trouble(usage)}"
    if shared := (report.get("cache") or {}).get("shared"):
        yield "shared", _shared(shared)
    if connections := report.get("connections"):
        yield "reading", f"{connections['in_flight']} requests in flight, at most {connections['limit']} now"
    if report.get("open_handles"):
        yield "open", f"{report['open_handles']:,} files"
    yield from _writing(report)


def _trouble(usage: Mapping[str, Any]) -> str:
    if not usage.get("on", True):
        return "; not in use, the log says why"
    return "; gives way, the file system is nearly full" if usage.get("gives_way") else ""


def _writing(report: Report) -> Iterator[tuple[str, str]]:
    if (spool := report.get("spool")) and spool["used"]:
        yield "spool", f"{format_size(spool['used'])} of {format_size(spool['limit'])}"
    for key, place in report.get("lost_and_found") or ():
        yield "lost race", f"{key}: somebody else was faster; what was written here is kept as {place}"
    if (waiting := report.get("write_back")) and waiting["changes"]:
        yield "to upload", backlog_of(waiting)
        for key, reason in waiting["failed"]:
            yield "failed", f"{key}: {reason}; it is tried again"


def _state(report: Report) -> str:
    process = f"process {report['pid']}"
    if report["state"] == "dead":
        return f"dead: {process} is gone; run: lazyfs umount {report['mountpoint']}"
    if report["state"] == "silent":
        return f"not answering ({process}): {report.get('error', '')}"
    age = f" for {format_duration(report['uptime_s'])}" if "uptime_s" in report else ""
    return f"mounted{age}, {process}"


def _import(progress: Report) -> str:
    parts = [str(progress.get("state", "unknown"))]
    parts += [f"{progress[name]:,} {name}" for name in ("objects", "directories", "requests") if name in progress]
    if progress.get("rate") and progress.get("state") == "running":
        parts.append(f"{progress['rate']:,.0f} objects/s")
    if progress.get("error"):
        parts.append(str(progress["error"]))
    return ", ".join(parts)


def _shared(shared: Report) -> str:
    states = {"on": "in use", "off": "not in use", "reading": "read only"}
    told = f"{shared['where']}, {states.get(shared['state'], shared['state'])}"
    return f"{told}; last error: {shared['last_error']}" if shared.get("last_error") else told


def _preload(progress: Report) -> str:
    state = str(progress.get("state", "unknown"))
    if state == "full":
        state = "stopped, the cache directory's --cache-size is used up"
    parts = [state, f"{progress.get('files', 0):,} files", format_size(progress.get("bytes", 0))]
    if progress.get("failures"):
        parts.append(f"{progress['failures']:,} failed ({progress.get('error', '')})")
    return ", ".join(parts)


def _setting(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{name} {'yes' if value else 'no'}"
    if name.endswith("_size"):
        return f"{name} {format_size(value)}"
    if name.endswith("_s"):
        return f"{name.removesuffix('_s')} {format_duration(value)}"
    return f"{name} {value}"
