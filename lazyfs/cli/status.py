"""`lazyfs status`: what each mount says of itself."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import click

from lazyfs.cli.mounts import resolve_mountpoint
from lazyfs.control import registry
from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.errors import ControlError, StartupError


@click.command()
@click.argument("mountpoint", required=False)
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one a mount, for programs.")
def status(mountpoint: str | None, as_json: bool) -> None:
    """Show the mounts of this user: import, cache, requests and counters.

    With MOUNTPOINT, only that one.
    """
    reports = [_report(registration) for registration in _chosen(mountpoint)]
    if as_json:
        click.echo(json.dumps(_standard(reports), indent=2))
    elif not reports:
        click.echo("no mounts")
    else:
        from lazyfs.cli.report import show  # noqa: PLC0415 - rich is slow to import

        show(reports, terminal=sys.stdout.isatty())


def _standard(value: Any) -> Any:
    """The value without infinity, which JSON does not have: a time without end is `indefinite`."""
    if isinstance(value, dict):
        return {name: _standard(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_standard(inner) for inner in value]
    return "indefinite" if value == math.inf else value


def _chosen(mountpoint: str | None) -> list[Registration]:
    if mountpoint is None:
        return registry.all_mounts()
    path = resolve_mountpoint(mountpoint)
    registration = registry.find(path)
    if registration is None:
        raise StartupError(f"{path} is not a mount of lazyfs of this user")
    return [registration]


def _report(registration: Registration) -> dict[str, Any]:
    """The daemon's own words, with `state` added: mounted, dead (no process) or silent (no answer)."""
    known = {"mountpoint": registration.mountpoint, "bucket": registration.bucket, "pid": registration.pid}
    if not registration.is_alive:
        return {**known, "state": "dead"}
    try:
        return {"state": "mounted", **known, **call(registration.socket, "status")}
    except ControlError as error:
        return {**known, "state": "silent", "error": str(error)}
