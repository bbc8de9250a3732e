"""What one open of a file has been given and has given, until somebody takes it down, and what a program has in all."""

from __future__ import annotations

from dataclasses import dataclass, field

from lazyfs.vfs.procfs import Program


@dataclass(slots=True)
class Tally:
    """Cheap to add to: reads and writes do so."""

    read_bytes: int = 0
    written_bytes: int = 0
    waited_ns: int = 0
    """For data."""
    by_tier: dict[str, int] = field(default_factory=dict)
    """Those of `read_bytes` that were not all in memory, by the tier that had them; the rest was there."""
    has_read: bool = False
    """Whether anything was read before the last `clear`."""

    @property
    def is_used(self) -> bool:
        """Whether there is anything to take down."""
        return bool(self.read_bytes or self.written_bytes or self.waited_ns)

    def found(self, tier: str, size: int) -> None:
        """So many bytes of what is read now are those of `tier`."""
        self.by_tier[tier] = self.by_tier.get(tier, 0) + size

    def clear(self) -> None:
        """It is taken down."""
        self.has_read = self.has_read or self.read_bytes > 0
        self.read_bytes = self.written_bytes = self.waited_ns = 0
        self.by_tier.clear()


@dataclass(slots=True, eq=False)
class Account:
    """What one program has done since it was first seen, at `since_s`."""

    program: Program
    since_s: float
    opens: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    waited_ns: int = 0
