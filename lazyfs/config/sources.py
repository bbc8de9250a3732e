"""Reading the sources: bucket argument, flags, `-o`, environment, TOML file.

`load` is the one way to a Config. Precedence is the order of `_given`; every message names the place where the user
wrote the value.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lazyfs.cache.engine import BucketAddress
from lazyfs.config.machine import xdg_directory
from lazyfs.config.options import (
    OPTIONS,
    BucketConfig,
    CacheConfig,
    Config,
    LogConfig,
    MountConfig,
    WriteConfig,
)
from lazyfs.config.shared import SharedCache
from lazyfs.config.values import BARE_NUMBERS, parse_switch, parse_text
from lazyfs.core.errors import UsageError

_BY_NAME = {option.name: option for option in OPTIONS}
_MAX_KEY = 1024

_MOUNT_WORDS = frozenset(
    [
        "rw",
        "defaults",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "group",
        "owner",
        "nofail",
        "_netdev",
        "async",
        "exec",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "atime",
        "noatime",
        "relatime",
        "norelatime",
        "nodiratime",
    ]
)
"""Words of mount(8) that are for others than us, or true anyway. `rw` too: mount(8) always adds it; and mount.fuse adds
`dev` and `suid`, which no mount of ours has all the same."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value as the user wrote it, and where."""

    text: str
    where: str


def load(
    bucket: str,
    mountpoint: str,
    flags: Mapping[str, str | bool | None],
    *,
    mount_options: str = "",
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The Config for the two arguments of `lazyfs mount` and its flags by option name, None for those not given.

    `mount_options` is the text after `-o`, `file` the TOML file; without it the user's own is read if there is one.
    Raises UsageError.
    """
    _refuse_swapped(bucket, mountpoint)
    name, prefix = parse_bucket(bucket)
    section = read_options(flags, bucket=name, mount_options=mount_options, file=file, environ=environ)
    _refuse_cache_in_itself(name, prefix, section["bucket"]["endpoint_url"], section["cache"]["shared"])
    if section["cache"]["preload"] and section["cache"]["directory"] is None:
        raise UsageError("--preload needs a place for the data: give a --cache-dir, not none")
    _refuse_unsafe(section["write"], section["cache"]["directory"])
    return Config(
        bucket=BucketConfig(name=name, prefix=prefix, **section["bucket"]),
        mount=MountConfig(mountpoint=_parse_mountpoint(mountpoint), **section["mount"]),
        cache=CacheConfig(**section["cache"]),
        write=WriteConfig(**section["write"]),
        log=LogConfig(**section["log"]),
    )


def read_options(
    flags: Mapping[str, str | bool | None],
    *,
    bucket: str,
    mount_options: str = "",
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """The value of every option by group and field; `bucket` is the name that defaults may use. Raises UsageError."""
    environ = os.environ if environ is None else environ
    given = _given(flags, mount_options, file, environ)
    values: dict[str, Any] = {"bucket": bucket}
    section: dict[str, dict[str, Any]] = {}
    for option in OPTIONS:
        if option.name in given:
            values[option.name] = _parse(option.parse, given[option.name])
            _refuse_shown(values[option.name], given[option.name])
        else:
            values[option.name] = option.default(values, environ)
        section.setdefault(option.group, {})[option.field] = values[option.name]
    return section


def _refuse_unsafe(write: Mapping[str, Any], directory: Path | None) -> None:
    if write["write_back"] and directory is None:
        raise UsageError("--write-back keeps files here until they are uploaded: give a --cache-dir, not none")
    if write["sse_kms_key_id"] is not None and not (write["sse"] or "").startswith("aws:kms"):
        raise UsageError("--sse-kms-key-id is for --sse aws:kms or aws:kms:dsse")
    if write["fsync"] == "local" and not write["write_back"]:
        raise UsageError("--fsync local needs --write-back: without it a file is durable in the bucket only")


# -- the two arguments --------------------------------------------------------------------------------------


def parse_bucket(text: str) -> tuple[str, str]:
    """Bucket and prefix for `BUCKET[/PREFIX]` or `s3://BUCKET[/PREFIX]`.

    A prefix that is not empty ends in one slash and does not begin with one. Raises UsageError.
    """
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme != "s3":
        raise UsageError(f"not a bucket: a URL must begin with s3://, not {scheme}://")
    name, _, prefix = rest.partition("/")
    if not name:
        raise UsageError(f"no bucket's name in {text!r}: write BUCKET, BUCKET/PREFIX or s3://BUCKET/PREFIX")
    # Looser than AWS, which has no capitals and underscores: other servers do, and the server has the last word.
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", name) is None or ".." in name:
        raise UsageError(f"not a bucket's name: {name!r} (3 or more of a-z, 0-9, dots and hyphens)")
    prefix = prefix.strip("/")
    if len(prefix.encode(errors="surrogateescape")) >= _MAX_KEY:
        raise UsageError(f"the prefix is longer than the {_MAX_KEY} bytes that a key may have")
    return name, prefix + "/" if prefix else ""


def _refuse_swapped(bucket: str, mountpoint: str) -> None:
    """Notice `lazyfs mount /mnt/data my-bucket` before anything else complains about it less clearly."""
    if mountpoint.startswith("s3://"):
        swapped = True
    else:
        second_is_path = _looks_like_path(mountpoint) or _is_directory(mountpoint)
        swapped = not second_is_path and (_looks_like_path(bucket) or _is_directory(bucket))
    if swapped:
        raise UsageError(
            f"the bucket comes first, then the mount point: lazyfs mount {_shown(mountpoint)} {_shown(bucket)}"
        )
    if _looks_like_path(bucket):
        raise UsageError(f"{bucket!r} is a path, not a bucket: write BUCKET, BUCKET/PREFIX or s3://BUCKET/PREFIX")


def _refuse_cache_in_itself(name: str, prefix: str, endpoint: str | None, shared: SharedCache | None) -> None:
    """What is shared must not appear in the mount, where it would be cached in its turn."""
    if not isinstance(shared, BucketAddress) or (shared.bucket, shared.endpoint_url or endpoint) != (name, endpoint):
        return
    if shared.prefix.startswith(prefix):
        raise UsageError("the shared cache lies inside what is mounted; give it a bucket or a prefix of its own")


def _looks_like_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..")


def _is_directory(text: str) -> bool:
    return os.path.isdir(text)


def _shown(argument: str) -> str:
    return argument or "''"


def _parse_mountpoint(text: str) -> Path:
    # Links are resolved, because the kernel's table of mounts has them resolved. A dead mount does not disturb this.
    return Path(os.path.realpath(os.path.expanduser(_parse(parse_text, Given(text, "mount point")))))


# -- the sources --------------------------------------------------------------------------------------------


def _given(
    flags: Mapping[str, str | bool | None], mount_options: str, file: Path | None, environ: Mapping[str, str]
) -> dict[str, Given]:
    """What was given for each option, by the source that wins."""
    return {
        **_from_toml(file, environ),
        **_from_environment(environ),
        **{name: Given(text, f"-o {name}") for name, text in parse_mount_options(mount_options).items()},
        **{name: Given(str(value), f"--{name}") for name, value in flags.items() if value is not None},
    }


def _from_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    """Variables that are set and not empty. Unknown LAZYFS_* are let be: tests and scripts have some of their own."""
    return {
        option.name: Given(environ[option.variable], option.variable)
        for option in OPTIONS
        if environ.get(option.variable)
    }


def parse_mount_options(text: str) -> dict[str, str]:
    """Text by option name for the fstab form `ro,allow_other,uid=1000`. Raises UsageError for a word unknown."""
    found: dict[str, str] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = word.partition("=")
        if name in _MOUNT_WORDS or name.startswith("x-") or name == "comment":
            continue
        name = "read-only" if name == "ro" else name.replace("_", "-")
        option = _BY_NAME.get(name)
        if option is None:
            raise UsageError(f"unknown mount option {word.partition('=')[0]!r}; did you mean {_nearest(name)}?")
        if not separator and option.parse is not parse_switch:
            raise UsageError(f"mount option {name} needs a value: {name}={option.metavar}")
        found[name] = value if separator else "true"
    return found


def texts_in_file(file: Path | None, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a TOML file says, by option name; None is the user's own file, which need not be there. UsageError."""
    given = _from_toml(file, os.environ if environ is None else environ)
    return {name: one.text for name, one in given.items()}


def _from_toml(file: Path | None, environ: Mapping[str, str]) -> dict[str, Given]:
    if file is None:
        file = xdg_directory("XDG_CONFIG_HOME", ".config", environ) / "lazyfs" / "config.toml"
        if not file.is_file():
            return {}
    try:
        with file.open("rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits
        raise UsageError(f"{file} is not TOML: {error}") from error
    return {name: _from_toml_value(name, value, file) for name, value in table.items()}


def _from_toml_value(name: str, value: object, file: Path) -> Given:
    option = _BY_NAME.get(name)
    if option is None:
        raise UsageError(f"unknown key {name!r} in {file}; did you mean {_nearest(name)}?")
    where = f"{name} in {file}"
    if isinstance(value, bool):
        if not option.is_switch:
            raise UsageError(f"{where}: true and false are for switches; this needs {option.metavar}")
        return Given(str(value), where)
    if isinstance(value, int | float) and option.parse in BARE_NUMBERS:
        return Given(str(value), where)
    if not isinstance(value, str) or option.is_switch:
        raise UsageError(f"{where}: write {'true or false' if option.is_switch else 'it in quotes'}")
    return Given(value, where)


def _refuse_shown(value: object, given: Given) -> None:
    """Every user of the machine sees the arguments of a process, for as long as it runs."""
    if given.where.startswith("-") and getattr(value, "has_secret", False):
        variable = _BY_NAME[given.where.removeprefix("-o ").lstrip("-")].variable
        raise UsageError(f"{given.where}: a password on the command line is seen by everybody; set it as {variable}")


def _nearest(name: str) -> str:
    return get_close_matches(name.replace("_", "-"), _BY_NAME, n=1, cutoff=0.0)[0]


def _parse(parse: Any, given: Given) -> Any:
    try:
        return parse(given.text)
    except UsageError as error:
        raise UsageError(f"{given.where}: {error}") from error
