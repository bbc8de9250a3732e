"""What the kernel remembers of a mount, seen from below."""

from __future__ import annotations

from typing import Protocol


class KernelCache(Protocol):
    """What the kernel remembers of us, and how to make it forget. Never blocks."""

    def forget_entry(self, parent: int, name: str) -> None:
        """`name` in directory `parent` no longer means what the kernel was told."""
        ...


class NoKernelCache:
    """For tests and before the mount: nobody remembers anything."""

    def forget_entry(self, parent: int, name: str) -> None:
        """Nothing to forget."""
