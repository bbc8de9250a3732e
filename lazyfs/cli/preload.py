"""`lazyfs preload`: has the daemon bring files to its SSD tier, in the order in which they are named."""

from __future__ import annotations

from typing import Any

import click

from lazyfs.cli import bringing
from lazyfs.core.ranges import parse_range


@click.command()
@bringing.options
@click.option(
    "--range", "ranges", metavar="RANGE", multiple=True, help="Only these bytes of each file, like 0-1MiB or -64KiB."
)
def preload(ranges: tuple[str, ...], **told: Any) -> int:
    """Bring files, or all below directories, to the cache directory while programs go on reading.

    What is listed comes in the given order, like that of the training; readers go first. Without --wait it goes on in
    the background: see lazyfs task. PATH may be a glob in quotes. A RANGE is half-open, like 1GiB-2GiB, 1GiB- (from
    there on) or -64KiB (the last 64 KiB); several are several options.
    """
    for one in ranges:
        parse_range(one)
    return bringing.bring("preload", **told, ranges=list(ranges) or None)
