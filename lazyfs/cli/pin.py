"""`lazyfs pin`: files that the SSD tier keeps, whatever else is read."""

from __future__ import annotations

from typing import Any

import click

from lazyfs.cli import bringing


@click.command()
@bringing.options
def pin(**told: Any) -> int:
    """Bring files, or all below directories, to the cache directory, and keep them there until lazyfs unpin.

    What is pinned is not evicted, and lazyfs release leaves it alone. It is the version of now: a file that changes in
    the bucket, or comes into a directory later, must be pinned anew. At most 80 % of --cache-size may be pinned.
    """
    return bringing.bring("pin", **told, pin=True)
