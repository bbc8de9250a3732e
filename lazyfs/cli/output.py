"""What commands print: for people in lines that no name can break or fill with commands, for programs as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import click

from lazyfs.core.errors import LazyfsError


def shown(path: str) -> str:
    """A path in one line on a terminal, whatever is in its name."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in path)


def say(line: str, *, err: bool = False) -> None:
    """Print one line for people; names, and what a server said, may be in it as they are."""
    click.echo(shown(line), err=err)


def complain(message: str, program: str = "lazyfs") -> None:
    """Say on standard error, in one line, what is wrong."""
    say(f"{program}: " + " ".join(message.split()), err=True)


def echo_json(documents: Iterable[Any]) -> None:
    """A JSON array of `documents`, one a line; only one is held at a time. It is closed whatever happens."""
    separator = "["
    try:
        for document in documents:
            click.echo(separator + "\n" + json.dumps(document), nl=False)
            separator = ","
    finally:
        click.echo("[]" if separator == "[" else "\n]")


class Troubles:
    """Errors that do not keep a command from its other arguments: told one a line, and the exit code is 1."""

    def __init__(self) -> None:
        self.count = 0

    def tell(self, message: str) -> None:
        """Say what is wrong, in one line."""
        self.count += 1
        complain(message)

    def each(self, texts: Iterable[str], work: Callable[[str], Any]) -> Iterable[Any]:
        """What `work` makes of each text; an error is told, and the next one follows."""
        for text in texts:
            try:
                yield from work(text)
            except LazyfsError as error:
                self.tell(str(error))

    @property
    def exit_code(self) -> int:
        """0 if nothing was told."""
        return 1 if self.count else 0
