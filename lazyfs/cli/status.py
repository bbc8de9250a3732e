"""`lazyfs status`: what each mount says of itself."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import click

from lazyfs.cli.mounts import resolve_mountpoint
from lazyfs.cli.output import Troubles, echo_json, say
from lazyfs.cli.places import Places
from lazyfs.cli.states import states
from lazyfs.control import registry
from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.errors import ControlError

ANSWER_S = 10.0


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("-r", "--recursive", is_flag=True, help="Everything below a directory, not only what is in it.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one a mount or file, for programs.")
def status(paths: tuple[str, ...], recursive: bool, as_json: bool) -> int:
    """Show the mounts of this user: import, cache, requests and counters.

    With a mount point as PATH, only that one. With a path in a mount: whether the file is here (released, partial,
    archived) or still to be uploaded (dirty, uploading, failed), and which bytes of it are in which tier. PATH may be
    a glob in quotes.
    """
    troubles = Troubles()
    reports, inside, places = [], [], Places()
    for path in paths:
        registration = None if recursive or places.is_inside(path) else registry.find(resolve_mountpoint(path))
        if registration is None:
            inside.append(path)
        else:
            reports.append(report_of(registration))
    if not paths:
        reports = [report_of(registration) for registration in registry.all_mounts()]
    files = troubles.each(inside, lambda path: states(path, recursive=recursive, plain=not as_json))
    if as_json:
        echo_json(itertools.chain(map(_standard, reports), files))
        return troubles.exit_code
    if reports:
        from lazyfs.cli.mountview import show  # noqa: PLC0415 - rich is slow to import

        show(reports, terminal=sys.stdout.isatty())
    elif not paths:
        click.echo("no mounts")
    for line in files:
        say(line)
    return troubles.exit_code


def _standard(value: Any) -> Any:
    """The value without infinity, which JSON does not have: a time without end is `indefinite`."""
    if isinstance(value, dict):
        return {name: _standard(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_standard(inner) for inner in value]
    return "indefinite" if value == math.inf else value


def report_of(registration: Registration, *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """The daemon's own words, with `state` added: mounted, dead (no process) or silent (no answer)."""
    known = {"mountpoint": registration.mountpoint, "bucket": registration.bucket, "pid": registration.pid}
    if not registration.is_alive:
        return {**known, "state": "dead"}
    try:
        return {"state": "mounted", **known, **call(registration.socket, "status", timeout_s=timeout_s)}
    except ControlError as error:
        return {**known, "state": "silent", "error": str(error)}
