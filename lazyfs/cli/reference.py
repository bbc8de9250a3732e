"""docs/configuration.md, written from the declarations: `python -m lazyfs.cli.reference > docs/configuration.md`."""

from __future__ import annotations

from collections.abc import Iterator

from lazyfs.cli.options import HEADINGS
from lazyfs.config import OPTIONS, Option

_HEAD = """# Configuration

<!-- Generated: python -m lazyfs.cli.reference > docs/configuration.md -->

Every option of `lazyfs mount` has one name in four places. `cache-size` is

- the flag `--cache-size 500GiB`,
- the word `cache-size=500GiB` after `-o`, for fstab (there with `_` for `-` as well; `ro` is `read-only`),
- the variable `LAZYFS_CACHE_SIZE=500GiB`,
- the line `cache-size = "500GiB"` in the TOML file of `--config FILE` (or of `LAZYFS_CONFIG`), else in
  `$XDG_CONFIG_HOME/lazyfs/config.toml` if there is one.

The first of them that is given counts; then comes the default. A key that the file should not have is an error, not a
surprise. An empty variable counts as not set.

Sizes are written `512MiB`, `20GiB` (K, M, G and T are powers of 1024); durations `500ms`, `60s`, `5m`, `12h`, `7d`.
In TOML, sizes in bytes, seconds and ids may be bare numbers, switches are `true` or `false`, all else is in quotes. A
switch that is set in the file is unset with its variable: `LAZYFS_NO_DELETE=false`.

Credentials are not options. They come from the `AWS_*` variables and files, as with every AWS tool, and a URL with a
password in it is refused. Only that of a Redis may hold one: `LAZYFS_SHARED_CACHE=rediss://user:password@host:6379/0`,
or the line in the TOML file, and never an argument, which every user of the machine can see.
"""

_TAIL = """
## Other variables

| Variable | Meaning |
| --- | --- |
| `LAZYFS_CONFIG` | The TOML file, as with `--config`. |
| `LAZYFS_DEBUG` | When set, an error of the command line keeps its traceback. |
| `LAZYFS_RUNTIME_DIR` | Where running mounts are noted, in place of `/run/lazyfs` or `$XDG_RUNTIME_DIR/lazyfs`. |
"""


def configuration() -> str:
    """The text of docs/configuration.md."""
    sections = [_section(group, heading) for group, heading in HEADINGS.items()]
    return "\n".join([_HEAD, *sections]) + _TAIL


def _section(group: str, heading: str) -> str:
    rows = "\n".join(_row(option) for option in OPTIONS if option.group == group)
    return f"## {heading}\n\n| Flag | Variable | Default | Meaning |\n| --- | --- | --- | --- |\n{rows}\n"


def _row(option: Option) -> str:
    return "| " + " | ".join((_flags(option), f"`{option.variable}`", _default(option), option.help)) + " |"


def _flags(option: Option) -> str:
    def spellings() -> Iterator[str]:
        if option.short:
            yield f"-{option.short}"
        yield f"--{option.name}" if option.is_switch else f"--{option.name} {option.metavar}".replace("|", "\\|")
        if option.negation:
            yield f"--{option.negation}"

    return ", ".join(f"`{spelling}`" for spelling in spellings())


def _default(option: Option) -> str:
    return option.default_text or ("off" if option.is_switch else "none")


if __name__ == "__main__":
    print(configuration(), end="")
