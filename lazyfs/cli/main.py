"""The command `lazyfs`: finds the subcommand, and is the one door where errors become a line and an exit code.

Subcommands are imported when they are asked for, and import the heavy libraries inside their functions, so that
`lazyfs --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from lazyfs import __version__
from lazyfs.cli.output import complain
from lazyfs.core.errors import LazyfsError, UsageError

COMMANDS = (
    "mount",
    "umount",
    "status",
    "top",
    "report",
    "find",
    "preload",
    "release",
    "pin",
    "unpin",
    "du",
    "sync",
    "flush",
    "task",
    "reload",
    "index",
    "doctor",
    "demo",
    "bench",
)
USAGE, FAILURE, INTERRUPTED = 2, 1, 130


class _LazyGroup(click.Group):
    """Each command is the function of the same name in the module of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"lazyfs.cli.{cmd_name}"), cmd_name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="lazyfs", message="%(prog)s %(version)s")
def lazyfs() -> None:
    """Mount an S3-compatible bucket as a file system for machine learning."""


def main() -> None:
    """Run the command line and exit: 0, 1 for a failure, 2 for wrong usage; errors are one line on stderr."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of `lazyfs ARGUMENTS`. With LAZYFS_DEBUG set, errors keep their traceback."""
    if len(arguments) == 4 and arguments[2] == "-o" and arguments[0] not in COMMANDS:
        # `mount -t fuse.lazyfs` runs mount.fuse, and that calls us like this.
        from lazyfs.cli.fstab import run as mount_from_fstab  # noqa: PLC0415 - see above

        return mount_from_fstab(arguments)
    try:
        result = lazyfs.main(arguments, prog_name="lazyfs", standalone_mode=False)
        sys.stdout.flush()
    except (LazyfsError, click.ClickException, BrokenPipeError) as error:
        if os.environ.get("LAZYFS_DEBUG"):
            raise
        return _explain(error)
    except (KeyboardInterrupt, click.Abort):
        click.echo("lazyfs: interrupted", err=True)
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _explain(error: Exception) -> int:
    """Tell the error in one line; the exit code that belongs to it."""
    if isinstance(error, BrokenPipeError):  # like `lazyfs status | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILURE
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help(), err=True)
        return USAGE
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message = f"{message.rstrip('.')} (see {error.ctx.command_path} --help)"
    complain(message)
    return USAGE if isinstance(error, UsageError | click.UsageError) else FAILURE
