"""`lazyfs unpin`: files that give way again when the cache is full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from lazyfs.cli.output import Troubles, echo_json, say
from lazyfs.cli.places import Place, locate
from lazyfs.core.units import format_size

_AT_ONCE = 200
"""Files of one message."""


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one a file, for programs.")
def unpin(paths: tuple[str, ...], as_json: bool) -> int:
    """Let what is here of files, or of all below directories, be evicted and released again.

    It stays here until the room is needed. PATH may be a glob in quotes.
    """
    troubles = Troubles()
    found = troubles.each(paths, _unpinned)
    if as_json:
        echo_json(found)
        return troubles.exit_code
    files = size = 0
    for files, one in enumerate(found, 1):  # noqa: B007 - how many there were
        size += one["bytes"]
    say(f"unpinned {files:,} files, {format_size(size)}")
    return troubles.exit_code


def _unpinned(path: str) -> Iterator[dict[str, Any]]:
    place = locate(path)
    some: list[dict[str, Any]] = []
    for entry in place.entries(recursive=True, asks=False):
        if entry.get("pinned"):
            some.append(entry)
        if len(some) >= _AT_ONCE:
            yield from _let_go(place, some)
            some = []
    if some:
        yield from _let_go(place, some)


def _let_go(place: Place, some: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    place.ask("unpin", inos=[entry["ino"] for entry in some])
    yield from ({"path": place.full(entry["path"]), "bytes": entry["pinned"]} for entry in some)
