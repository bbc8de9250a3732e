"""`mount.lazyfs SOURCE TARGET [-sfnv] [-o OPTIONS]`: the program that mount(8) runs for a line of /etc/fstab.

Promises what fstab expects and `lazyfs mount` does not do: a target that this bucket is mounted on already, by a daemon
that answers, is a success; one whose daemon died is detached and mounted anew. Anything else that is mounted there is
left alone. `lazyfs SOURCE TARGET -o OPTIONS` is the same, because that is how mount.fuse calls for `-t fuse.lazyfs`.
Source: mount(8), section EXTERNAL HELPERS, and its exit codes.
"""

from __future__ import annotations

import getopt
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click

from lazyfs.cli.mounts import FS_TYPE, find_mount, is_dead
from lazyfs.cli.output import complain, say
from lazyfs.cli.unmounting import unmount
from lazyfs.config import Config, load, parse_mount_options
from lazyfs.control import registry
from lazyfs.control.client import call
from lazyfs.core.errors import ControlError, LazyfsError, StartupError, UsageError

USAGE = "usage: mount.lazyfs BUCKET[/PREFIX] MOUNTPOINT [-sfnv] [-o OPTION,OPTION=VALUE,…]"
WRONG_CALL, INTERRUPTED, MOUNT_FAILED = 1, 8, 32
ANSWER_S = 10.0


@dataclass(slots=True)
class Call:
    """What mount(8) said. `words` are the options, `file` the TOML file of the word `config=`."""

    source: str
    target: str
    words: list[str] = field(default_factory=list)
    file: Path | None = None
    fake: bool = False
    sloppy: bool = False
    verbose: bool = False


def main() -> None:
    """Run the helper and exit with mount(8)'s codes."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """0 if the bucket is mounted, 1 for a wrong call, 32 if it cannot be mounted, 8 if interrupted."""
    try:
        _mount(parse(arguments))
    except (LazyfsError, click.ClickException) as error:
        if os.environ.get("LAZYFS_DEBUG"):
            raise
        complain(str(error), "mount.lazyfs")
        return WRONG_CALL if isinstance(error, UsageError) else MOUNT_FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def parse(arguments: list[str]) -> Call:
    """The arguments of mount(8). Raises UsageError."""
    try:
        flags, places = getopt.gnu_getopt(arguments, "sfnvrwo:t:")
    except getopt.GetoptError as error:
        raise UsageError(f"{error}; {USAGE}") from error
    if len(places) != 2:
        raise UsageError(USAGE)
    found = Call(source=places[0], target=places[1])
    for flag, value in flags:
        found.fake |= flag == "-f"
        found.sloppy |= flag == "-s"
        found.verbose |= flag == "-v"
        if flag == "-r":
            found.words.append("ro")
        if flag == "-o":
            found.words += [word for word in value.split(",") if word]
    files = [word for word in found.words if word.startswith("config=")]
    if files:
        found.file = Path(files[-1].removeprefix("config="))
    found.words = [word for word in found.words if word not in files and (not found.sloppy or _is_known(word))]
    return found


def _is_known(word: str) -> bool:
    try:
        parse_mount_options(word)
    except UsageError:
        return False
    return True


def _mount(said: Call) -> None:
    config = load(said.source, said.target, {}, mount_options=",".join(said.words), file=said.file)
    if said.fake or _is_served(config):
        return
    from lazyfs.cli.mount import start  # noqa: PLC0415 - what is mounted already need not wait for it

    start(config, say=say if said.verbose else lambda _: None)


def _is_served(config: Config) -> bool:
    """Whether exactly this is mounted there, and answers. What is dead is detached. StartupError."""
    path = config.mount.mountpoint
    entry = find_mount(path)
    if entry is None or entry.fs_type != FS_TYPE:
        return False
    if is_dead(path):
        try:
            unmount(path, lazy=True)
        except OSError as error:
            raise StartupError(f"cannot detach {path}, whose daemon died: {error.strerror}") from error
        registry.unregister(path)
        complain(f"{path} was a mount whose daemon had died; mounting it anew", "mount.lazyfs")
        return False
    registration = registry.find(path)
    if registration is None:
        return False  # another user's
    try:
        status = call(registration.socket, "status", timeout_s=ANSWER_S)
    except ControlError as error:
        raise StartupError(f"{path} is mounted, but does not answer: {error}") from error
    bucket = config.bucket
    if [status[name] for name in ("bucket", "prefix", "endpoint")] != [bucket.name, bucket.prefix, bucket.endpoint_url]:
        mounted = f"{status['bucket']}/{status['prefix']}".rstrip("/")
        raise StartupError(f"{mounted} is mounted on {path} already; run: lazyfs umount {path}")
    complain(f"{bucket.name}/{bucket.prefix}".rstrip("/") + f" is mounted on {path} already", "mount.lazyfs")
    return True
