"""`lazyfs index`: what one mount has listed, as a file for others to start from."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lazyfs.cli.mounts import resolve_mountpoint
from lazyfs.cli.output import say
from lazyfs.config.values import parse_snapshot
from lazyfs.control import registry
from lazyfs.control.client import call
from lazyfs.core.errors import StartupError
from lazyfs.core.units import format_size

EXPORT_S = 3600.0
"""Ten million files take some minutes."""


@click.group()
def index() -> None:
    """Write the index of a mount to a file, from which other machines start without listing the bucket."""


@index.command()
@click.argument("mountpoint")
@click.argument("target", metavar="FILE|s3://BUCKET/KEY")
def export(mountpoint: str, target: str) -> None:
    """Write a snapshot of the mount's index, to use with `lazyfs mount --index`.

    The bucket must have been listed once. A file or object of that name is replaced.
    """
    path = resolve_mountpoint(mountpoint)
    registration = registry.find(path)
    if registration is None:
        raise StartupError(f"{path} is not a mount of lazyfs of this user")
    place = parse_snapshot(target)
    if not place.startswith("s3://"):
        place = os.path.join(os.path.realpath(Path(place).parent), Path(place).name)
    told = call(registration.socket, "export", timeout_s=EXPORT_S, to=place)
    packed = format_size(told["packed"])
    say(f"exported {told['files']:,} files, {format_size(told['bytes'])}, to {place} ({packed})")
