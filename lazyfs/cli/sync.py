"""`lazyfs sync`: what a mount knows of names is made true now."""

from __future__ import annotations

import json

import click

from lazyfs.cli.output import Troubles
from lazyfs.cli.places import locate
from lazyfs.cli.waiting import describe, wait_for


@click.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="The finished task, for programs.")
def sync(path: str, as_json: bool) -> int:
    """Ask the bucket now for names, sizes and versions at PATH and below, deletions too, whatever --metadata-ttl says.

    For a mount point the whole bucket is listed again.
    """
    troubles = Troubles()
    place = locate(path)
    task = wait_for(place.registration, place.ask("sync", path=place.path)["id"])
    if as_json:
        click.echo(json.dumps({**task, "mountpoint": place.registration.mountpoint}))
    if task["state"] != "done":
        troubles.tell(f"sync of {path} {task['state']}: {task['error'] or 'by lazyfs task'}")
    elif not as_json:
        click.echo(f"{path} is as in the bucket ({describe(task)})")
    return troubles.exit_code
