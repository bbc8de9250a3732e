"""Which files a command is about: by state, size and name.

Pure. What a name and a size say is looked at before the state, which costs more to know.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

from lazyfs.core.errors import UsageError
from lazyfs.core.residency import State
from lazyfs.core.units import parse_size


@dataclass(frozen=True, slots=True)
class Selection:
    """What all must hold; what is None holds for all. Sizes are bytes, both ends included."""

    states: frozenset[str] | None = None
    name: str | None = None
    smallest: int | None = None
    largest: int | None = None

    @property
    def is_set(self) -> bool:
        """Whether anything is asked for."""
        return self != Selection()

    def dump(self) -> dict[str, Any]:
        """As it goes over the control socket."""
        return {
            "states": None if self.states is None else sorted(self.states),
            "name": self.name,
            "smallest": self.smallest,
            "largest": self.largest,
        }

    @staticmethod
    def load(document: Mapping[str, Any]) -> Selection:
        """What `dump` made. UsageError if it is something else."""
        states, name, *sizes = (document.get(one) for one in ("states", "name", "smallest", "largest"))
        if not (states is None or isinstance(states, list)) or not (name is None or isinstance(name, str)):
            raise UsageError("malformed selection")
        if not all(size is None or isinstance(size, int) for size in sizes):
            raise UsageError("malformed selection")
        return Selection(
            states=None if states is None else frozenset(map(str, states)),
            name=name,
            smallest=sizes[0],
            largest=sizes[1],
        )

    def fits_entry(self, name: str, size: int, *, is_file: bool) -> bool:
        """Whether an entry may be one, as far as the namespace knows; a directory only if nothing is asked for."""
        if not is_file:
            return not self.is_set
        if self.name is not None and _matcher(self.name).match(name) is None:
            return False
        if self.smallest is not None and size < self.smallest:
            return False
        return self.largest is None or size <= self.largest

    def fits_state(self, state: str) -> bool:
        """Whether it is in one of the states."""
        return self.states is None or state in self.states


@functools.lru_cache(maxsize=16)
def _matcher(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def parse_states(text: str) -> frozenset[str]:
    """`released,partial`. UsageError."""
    states = frozenset(word.strip().lower() for word in text.split(","))
    known = {state.value for state in State}
    if strange := states - known:
        raise UsageError(
            f"not a state: {', '.join(sorted(strange))!r} (one of {', '.join(state.value for state in State)})"
        )
    return states


def parse_size_bounds(text: str) -> tuple[int | None, int | None]:
    """Smallest and largest: `+1MiB` is more than that, `-1MiB` less, `1MiB` exactly. UsageError."""
    stripped = text.strip()
    size = parse_size(stripped[1:] if stripped[:1] in ("+", "-") else stripped)
    if stripped.startswith("+"):
        return size + 1, None
    if stripped.startswith("-"):
        return None, size - 1
    return size, size
