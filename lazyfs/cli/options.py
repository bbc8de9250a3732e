"""The declared options of a mount as click options, under headings in --help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import click

from lazyfs.config import OPTIONS, Option

HEADINGS = {"bucket": "Bucket", "mount": "Mount", "cache": "Cache", "write": "Write", "log": "Logs"}

F = TypeVar("F", bound=Callable[..., object])


class GroupedCommand(click.Command):
    """A command whose --help shows the declared options by group, and its epilog as it was written."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section a group, then the options that belong to none."""
        group_of = {parameter(option): option.group for option in OPTIONS} | {"mount_words": "mount"}
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS.values()}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                heading = HEADINGS.get(group_of.get(param.name or "", ""), "Other")
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog without wrapping: it holds commands to copy."""
        del ctx
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


def parameter(option: Option) -> str:
    """The name under which click hands over the option's value."""
    return option.name.replace("-", "_")


def declared_options(*groups: str) -> Callable[[F], F]:
    """Decorate a click command with the declared options of `groups`. Values are text, or None where not given."""

    def decorate(command: F) -> F:
        for option in reversed([option for option in OPTIONS if option.group in groups]):
            command = click.option(
                *_declarations(option),
                parameter(option),
                is_flag=option.is_switch,
                default=None,
                metavar=None if option.is_switch else option.metavar,
                help=_help(option),
            )(command)
        return command

    return decorate


def by_name(flags: Mapping[str, str | bool | None]) -> dict[str, str | bool | None]:
    """What click handed over, by option name."""
    return {name.replace("_", "-"): value for name, value in flags.items()}


def _declarations(option: Option) -> list[str]:
    flag = f"--{option.name}" + (f"/--{option.negation}" if option.negation else "")
    return [flag] if option.short is None else [f"-{option.short}", flag]


def _help(option: Option) -> str:
    return f"{option.help} [{option.default_text}]" if option.default_text else option.help
