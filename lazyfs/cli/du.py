"""`lazyfs du`: how much of each directory is here, tier by tier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from lazyfs.cli.output import Troubles, echo_json, say
from lazyfs.cli.places import Place, locate
from lazyfs.core.units import format_size

COLUMNS = ("size", "memory", "disk", "spool", "pinned", "dirty")
"""In bytes; `dirty` is what the bucket does not have yet."""


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--depth", type=click.IntRange(0, 100), default=1, show_default=True, help="How far below PATH.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one a directory, for programs.")
def du(paths: tuple[str, ...], depth: int, as_json: bool) -> int:
    """Sum up directories: files, bytes, and how many of those are in memory, on the disk, in the spool.

    A directory counts what is below it. Answered by what the mount has listed, without a request. PATH may be a glob
    in quotes.
    """
    troubles = Troubles()

    def below(path: str) -> Iterator[dict[str, Any]]:
        place = locate(path)
        if (imported := place.import_state()) != "done":
            say(f"{path}: the import is {imported}; what is not listed yet is not counted", err=True)
        for directory, sums in sorted(_sums(place, depth).items()):
            yield {"path": place.full(directory), "files": sums["files"], **{name: sums[name] for name in COLUMNS}}

    found = troubles.each(paths, below)
    if as_json:
        echo_json(found)
        return troubles.exit_code
    say(f"{'files':>10}" + "".join(f"{name:>12}" for name in COLUMNS))
    for one in found:
        sizes = "".join(f"{format_size(one[name]) if one[name] else '-':>12}" for name in COLUMNS)
        say(f"{one['files']:>10,}{sizes}  {one['path']}")
    return troubles.exit_code


def _sums(place: Place, depth: int) -> dict[str, dict[str, int]]:
    """Of each directory and all below it."""
    named = len(place.path.split("/")) if place.path else 0
    sums: dict[str, dict[str, int]] = {}
    for told in place.entries(verb="usage", depth=depth):
        for directory in _counting(told["path"], named):
            _add(sums.setdefault(directory, {}), told)
    return sums or {place.path: dict.fromkeys(("files", *COLUMNS), 0)}


def _counting(path: str, named: int) -> Iterator[str]:
    """`path`, and the directories above it that were asked about."""
    parts = path.split("/") if path else []
    yield from ("/".join(parts[:count]) for count in range(min(named, len(parts)), len(parts) + 1))


def _add(sums: dict[str, int], told: Mapping[str, Any]) -> None:
    for name in ("files", *COLUMNS):
        sums[name] = sums.get(name, 0) + told[name]
