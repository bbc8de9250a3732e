"""`lazyfs sync`: what a mount knows of names is made true now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from lazyfs.cli.output import Troubles, echo_json, say
from lazyfs.cli.places import locate
from lazyfs.cli.waiting import describe, wait_for
from lazyfs.control import registry


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one a path: its task, ended.")
def sync(paths: tuple[str, ...], as_json: bool) -> int:
    """Ask the bucket now for names, sizes and versions at PATH and below, deletions too, whatever --metadata-ttl says.

    For a mount point the whole bucket is listed again; without PATH, those of all mounts of this user.
    """
    troubles = Troubles()
    chosen = paths or tuple(entry.mountpoint for entry in registry.all_mounts() if entry.is_alive)
    tasks = troubles.each(chosen, lambda path: _synced(path, troubles))
    if as_json:
        echo_json(task for _, task in tasks)
        return troubles.exit_code
    for path, task in tasks:
        if task["state"] == "done":
            say(f"{path} is as in the bucket ({describe(task)})")
    return troubles.exit_code


def _synced(path: str, troubles: Troubles) -> Iterator[tuple[str, dict[str, Any]]]:
    """The task that has ended."""
    place = locate(path)
    task = wait_for(place.registration, place.ask("sync", path=place.path)["id"])
    if task["state"] != "done":
        troubles.tell(f"sync of {path} {task['state']}: {task['error'] or 'by lazyfs task'}")
    yield path, {**task, "mountpoint": place.registration.mountpoint}
