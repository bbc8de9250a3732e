"""`lazyfs reload`: changes what can be changed of a mount while programs use it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lazyfs.cli.output import say
from lazyfs.cli.places import locate
from lazyfs.config.options import RELOADABLE
from lazyfs.config.sources import texts_in_file
from lazyfs.core.errors import UsageError
from lazyfs.core.units import format_duration


@click.command()
@click.argument("mountpoint")
@click.option("--metadata-ttl", metavar="TIME|indefinite", help="How long names and sizes are believed.")
@click.option("--log-level", metavar="debug|info|warning|error", help="How much is logged.")
@click.option(
    "--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="Take both from this TOML file."
)
@click.option("--json", "as_json", is_flag=True, help="The policy in force, for programs.")
def reload(mountpoint: str, metadata_ttl: str | None, log_level: str | None, file: Path | None, as_json: bool) -> None:
    """Give a mount another --metadata-ttl or --log-level, without unmounting.

    Without options, what the user's own configuration file says of them now. What the kernel was told before, it
    believes for as long as it was told. All else needs a new mount.
    """
    flags = {"metadata-ttl": metadata_ttl, "log-level": log_level}
    given = {name: text for name, text in flags.items() if text is not None}
    if not given:
        given = {name: text for name, text in texts_in_file(file).items() if name in RELOADABLE}
        if not given:
            raise UsageError("nothing to reload: give --metadata-ttl or --log-level, or a file that has them")
    policy = locate(mountpoint).ask("reload", given=given)
    if as_json:
        click.echo(json.dumps(policy))
        return
    ttl = format_duration(policy["metadata_ttl_s"])
    say(f"{mountpoint}: --metadata-ttl {ttl}, --log-level {policy['log_level']}")
