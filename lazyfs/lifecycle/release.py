"""`lazyfs release` and `lazyfs unpin`, as the daemon answers them."""

from __future__ import annotations

from typing import Any

from lazyfs.core.errors import ControlError
from lazyfs.vfs.releaser import Releaser

MAX_FILES = 1000
"""Of one request."""


class Releases:
    """Drops what is here of files that `entries` has told."""

    def __init__(self, releaser: Releaser) -> None:
        self._releaser = releaser

    def verbs(self) -> dict[str, Any]:
        """What the control socket offers."""
        return {"release": self.release, "unpin": self.unpin}

    async def release(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Release the files `inos`: pairs of those that were, with their bytes, and of those that were not, with why.
        ControlError."""
        outcome = await self._releaser.release(_inos(arguments))
        return {"released": list(outcome.bytes.items()), "kept": list(outcome.kept.items())}

    async def unpin(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The files `inos` are evicted again when room is needed. ControlError."""
        await self._releaser.unpin(_inos(arguments))
        return {}


def _inos(arguments: dict[str, Any]) -> list[int]:
    inos = arguments.get("inos")
    if not isinstance(inos, list) or len(inos) > MAX_FILES or not all(map(_is_number, inos)):
        raise ControlError(f"inos must be a list of at most {MAX_FILES} numbers")
    return inos


def _is_number(ino: object) -> bool:
    return isinstance(ino, int) and 0 < ino < 2**63
