"""The states of files: as objects for programs, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from lazyfs.cli.output import shown
from lazyfs.cli.places import Place, locate
from lazyfs.core.residency import format_ranges
from lazyfs.core.types import Range
from lazyfs.core.units import format_size

Document = Mapping[str, Any]
_SHOWN_RANGES = 16
"""On a line for a person."""


def states(text: str, *, recursive: bool, plain: bool) -> Iterator[Any]:
    """What the daemon says of the files that `text` means: documents, or lines if `plain`. LazyfsError."""
    place = locate(text)
    entries = (entry for entry in place.entries(recursive=recursive) if entry["kind"] != "directory" or not recursive)
    if not plain:
        yield from (document(place, entry) for entry in entries)
        return
    files = size = resident = 0
    first: Document | None = None
    for entry in entries:
        files += entry["kind"] != "directory"
        size += entry.get("size", 0)
        resident += entry.get("resident", 0)
        first = entry
        yield line(place, entry)
    if first is not None and files == 1 and first["path"] == place.path:
        yield from details(first)
    elif files or first is None:
        yield f"{files:,} files, {format_size(size)}, of which {format_size(resident)} are here"


def document(place: Place, entry: Document) -> dict[str, Any]:
    """What a program is told: the whole path, and ranges as pairs of first byte and the one behind the last."""
    return {**entry, "path": place.full(entry["path"]), "mountpoint": place.registration.mountpoint}


def line(place: Place, entry: Document) -> str:
    """A file in one line."""
    path = shown(place.full(entry["path"]))
    if entry["kind"] == "directory":
        return f"{'directory':<10} {'':>21}  {path}"
    state = entry["state"]
    if entry.get("parts"):
        state += " {}/{}".format(*entry["parts"])
    sizes = f"{format_size(entry['resident'])} of {format_size(entry['size'])}"
    reason = f" ({shown(entry['error'])})" if entry.get("error") else ""
    pinned = " pinned" if entry.get("pinned") else ""
    return f"{state + pinned:<10} {sizes:>21}  {path}{reason}"


def details(entry: Document) -> Iterator[str]:
    """The rest of what is known of a file."""
    for tier, spans in entry["ranges"].items():
        told = format_ranges(Range(*span) for span in spans[:_SHOWN_RANGES])
        more = f" and {len(spans) - _SHOWN_RANGES:,} more" if len(spans) > _SHOWN_RANGES else ""
        yield f"  {tier:<8}{told}{more}"
    if entry.get("opened_s") is not None:
        yield f"  {'opened':<8}{datetime.fromtimestamp(entry['opened_s']).astimezone().isoformat(' ', 'seconds')}"
    if entry["etag"] is not None:
        yield f"  {'etag':<8}{shown(entry['etag'])}"
    yield f"  {'key':<8}{shown(entry['key'])}"
