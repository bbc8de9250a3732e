"""`lazyfs find`: files by state, size and name, out of the index."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from lazyfs.cli.output import Troubles, echo_json, say, shown
from lazyfs.cli.places import locate
from lazyfs.cli.states import document
from lazyfs.core.selection import Selection, parse_size_bounds, parse_states


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--state", metavar="STATE,…", help="released, partial, archived, dirty, uploading, failed.")
@click.option("--size", metavar="[+-]SIZE", help="More than, less than, or exactly this, like +1MiB.")
@click.option("--name", metavar="GLOB", help="The last component of the path.")
@click.option("-0", "--print0", is_flag=True, help="End each path with NUL and not with a newline.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, as of lazyfs status, for programs.")
def find(
    paths: tuple[str, ...], state: str | None, size: str | None, name: str | None, print0: bool, as_json: bool
) -> int:
    """Print the files below directories that are in a state, of a size, of a name; without options everything.

    Answered by what the mount has listed, without a request. PATH may be a glob in quotes.
    """
    smallest, largest = (None, None) if size is None else parse_size_bounds(size)
    states = None if state is None else parse_states(state)
    selection = Selection(states=states, name=name, smallest=smallest, largest=largest).dump()
    troubles = Troubles()

    def below(path: str) -> Iterator[dict[str, Any]]:
        place = locate(path)
        if (imported := place.import_state()) != "done":
            say(f"{path}: the import is {imported}; what is not listed yet is not told", err=True)
        entries = place.entries(recursive=True, asks=False, selection=selection)
        yield from (document(place, entry) for entry in entries)

    found = troubles.each(paths, below)
    if as_json:
        echo_json(found)
        return troubles.exit_code
    for one in found:
        # As find(1) does: a program gets the name, byte for byte, a terminal what it cannot be commanded by.
        path = shown(one["path"]) if sys.stdout.isatty() and not print0 else one["path"]
        click.echo(path.encode("utf-8", "surrogateescape") + (b"\0" if print0 else b"\n"), nl=False)
    return troubles.exit_code
