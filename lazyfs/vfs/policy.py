"""What a mount allows, and how its files look to everybody."""

from __future__ import annotations

from dataclasses import dataclass

from lazyfs.core.errors import NotPermittedError, ReadOnlyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules of one mount; `conditional_put` is whether its endpoint was seen to honour preconditions on writes."""

    read_only: bool
    no_overwrite: bool
    no_delete: bool
    conditional_put: bool
    uid: int
    gid: int
    file_mode: int
    dir_mode: int
    xattrs: bool = False
    """Whether extended attributes are offered. The kernel then asks for one before each write."""
    asks_modes: bool = False
    """Whether an object whose mode nobody here has set is asked for it, by a HEAD when somebody first looks at it."""

    def check_writable(self) -> None:
        """Return if anything may be changed. ReadOnlyError."""
        if self.read_only:
            raise ReadOnlyError("the mount is read-only")

    def check_replaceable(self) -> None:
        """Return if an object that exists may get other content. NotPermittedError."""
        if self.no_overwrite:
            raise NotPermittedError("the mount forbids overwriting (--no-overwrite)")

    def check_deletable(self) -> None:
        """Return if objects may be deleted. ReadOnlyError, NotPermittedError."""
        self.check_writable()
        if self.no_delete:
            raise NotPermittedError("the mount forbids deleting (--no-delete)")
