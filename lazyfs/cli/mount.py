"""`lazyfs mount`: from the command line to a running daemon."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from lazyfs.cli.daemonise import daemonise
from lazyfs.cli.logs import configure_logging
from lazyfs.cli.notify import notify
from lazyfs.cli.options import HEADINGS, GroupedCommand, by_name, declared_options
from lazyfs.cli.output import say
from lazyfs.cli.preflight import preflight
from lazyfs.cli.progress import Tell, View, describe, import_view, tell_import
from lazyfs.config import Config, load
from lazyfs.core.units import format_size

PATIENCE_US = 60_000_000
"""While the import gets on, systemd waits for it so much longer."""
EPILOG = """Examples:
  lazyfs mount my-bucket /mnt/data
  lazyfs mount s3://my-bucket/imagenet/train /mnt/train --read-only --metadata-ttl indefinite
  lazyfs mount my-bucket ./data -f --endpoint-url http://127.0.0.1:9000 --cache-dir /nvme/lazyfs --cache-size 500GiB

For /etc/fstab there is mount.lazyfs: docs/operations.md.
Every option can also be set in the environment (--cache-size is LAZYFS_CACHE_SIZE) and in the file of --config
(cache-size = "500GiB"). Credentials come from the AWS_* variables and files."""


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("bucket", metavar="BUCKET[/PREFIX]")
@click.argument("mountpoint")
@declared_options(*HEADINGS)
@click.option(
    "-o",
    "mount_words",
    multiple=True,
    metavar="A,B=C",
    help="Options in the form of fstab: ro, allow_other, uid=1000, cache_size=20GiB …",
)
@click.option(
    "--config",
    "config_file",
    envvar="LAZYFS_CONFIG",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file with options. [$XDG_CONFIG_HOME/lazyfs/config.toml, if there]",
)
def mount(
    bucket: str,
    mountpoint: str,
    mount_words: tuple[str, ...],
    config_file: Path | None,
    **flags: str | bool | None,
) -> None:
    """Mount a bucket, or what lies below a prefix of it, as a directory.

    Returns when the mount answers; with -f, when it is unmounted. BUCKET may be written s3://BUCKET/PREFIX.
    """
    config = load(
        bucket,
        mountpoint,
        by_name(flags),
        mount_options=",".join(mount_words),
        file=config_file,
    )
    start(config, say=say)


def start(config: Config, *, say: Callable[[str], None]) -> None:
    """Mount, and `say` what is mounted; returns when the mount answers, or in the foreground when it is unmounted."""
    preflight(config)
    if config.mount.foreground:
        with import_view(may_draw=config.log.file is not None) as view:
            _run(config, lambda: _say_ready(view, config, say), lambda progress: _tell(view, progress))
        return
    assert config.log.file is not None, "a default of the background"
    with import_view() as view:
        daemonise(partial(_run, config), log_file=config.log.file, on_progress=partial(tell_import, view))
    say(_mounted(config))


def _say_ready(view: View, config: Config, say: Callable[[str], None]) -> None:
    view.close()
    say(_mounted(config))
    notify("READY=1", f"STATUS={_mounted(config)}")


def _tell(view: View, progress: dict[str, Any]) -> None:
    tell_import(view, progress)
    notify(f"EXTEND_TIMEOUT_USEC={PATIENCE_US}", f"STATUS=importing: {describe(progress)}")


def _run(config: Config, on_ready: Callable[[], None], on_progress: Tell) -> None:
    configure_logging(config.log.file, config.log.level)
    from lazyfs.daemon import run  # noqa: PLC0415 - heavy, and only after the fork

    run(config, on_ready=on_ready, on_progress=on_progress)


def _mounted(config: Config) -> str:
    """What is mounted where, and what happens to writes: nobody should learn that from a lost file."""
    where = f"mounted {config.bucket.name}/{config.bucket.prefix}".rstrip("/") + f" at {config.mount.mountpoint}"
    return f"{where} ({write_policy(config)})"


def write_policy(config: Config) -> str:
    """The policy of writes in a few words."""
    if config.mount.read_only:
        return "read-only"
    if config.write.write_back:
        words = ["files are kept here when closed, and uploaded later"]
        words.append("fsync keeps them here too" if config.write.fsync == "local" else "fsync waits for the upload")
    else:
        words = [f"files are uploaded when closed, in parts of {format_size(config.write.part_size)}"]
    if config.write.no_overwrite:
        words.append("replacing is refused")
    if config.write.no_delete:
        words.append("deleting is refused")
    return "; ".join(words)
