"""Paths in a mount as a person names them, globs too.

Pure. A path here is relative to the mount point, without a slash at either end; the mount point itself is empty.
"""

from __future__ import annotations

import re
from fnmatch import translate

_MAGIC = re.compile(r"[*?[]")


def has_magic(path: str) -> bool:
    """Whether `path` may be meant as a pattern. A file of exactly that name goes before."""
    return _MAGIC.search(path) is not None


def split_pattern(path: str) -> tuple[str, tuple[str, ...]]:
    """The directory in which a pattern begins, and its components from the first that has magic on."""
    names = path.split("/")
    first = next((number for number, name in enumerate(names) if has_magic(name)), len(names))
    return "/".join(names[:first]), tuple(names[first:])


class Pattern:
    """Components of a glob, one a level. As in a shell, a name that begins with a dot is only matched by a dot."""

    def __init__(self, components: tuple[str, ...]) -> None:
        self._names = components
        self._matchers = [re.compile(translate(name)) for name in components]

    def __len__(self) -> int:
        return len(self._names)

    def matches(self, level: int, name: str) -> bool:
        """Whether `name` fits the component of this level, counted from 0; below the pattern everything does."""
        if level >= len(self._names):
            return True
        if name.startswith(".") and not self._names[level].startswith("."):
            return False
        return self._matchers[level].match(name) is not None


def is_text(path: str) -> bool:
    """Whether a key could have this path: UTF-8 without NUL."""
    try:
        return "\0" not in path and bool(path.encode() or True)
    except UnicodeEncodeError:
        return False
