"""From keys to directories: what a page of a listing says about the tree.

Keys split on `/`. Inside a directory an *entry* is named `x` when it is a file and `x/` when it is a directory, so
that both may exist (the directory then hides the file) and so that entries sort exactly as S3 sorts keys. All
paths here are relative to the mounted prefix; a directory's path is empty (the root) or ends in `/`.

A *slice* is the one kind of fact that a listing gives: inside this directory, between these two names, exactly
these entries exist. Applying it adds, changes and deletes. A listing with a delimiter and a recursive one both
come down to slices (`slice_of_directory`, `slices_of_keys`), whose equivalence is a property test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import lt
from typing import NamedTuple

from lazyfs.core.types import ObjectInfo

MAX_COMPONENT_BYTES = 255
MAX_KEY_BYTES = 1024


class Entry(NamedTuple):
    """A name in a directory. A directory's other fields say nothing."""

    name: str
    size: int = 0
    mtime_ns: int = 0
    etag: str = ""
    storage_class: str = ""

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return self.name.endswith("/")


@dataclass(slots=True)
class Slice:
    """In `directory`, the entries whose name is in (after, upto] are exactly `entries`; upto None = to the end."""

    directory: str
    after: str
    upto: str | None
    entries: list[Entry]

    def covers(self, name: str) -> bool:
        """Whether this slice decides if `name` exists. Not if it is a directory in which the slice ends: the keys of
        that may all come later."""
        if self.upto is None:
            return self.after < name
        return self.after < name <= self.upto and not (name.endswith("/") and self.upto.startswith(name))


@dataclass(slots=True)
class PageFacts:
    """What a page of keys says: slices, the directories that it finished, and how many keys it had to skip."""

    slices: list[Slice] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def component_problem(component: str) -> str | None:
    """Why `component` cannot be a name in a path, or None when it can."""
    if not component:
        return "empty path component"
    if component in (".", ".."):
        return f"path component {component!r}"
    if "\0" in component:
        return "NUL in a path component"
    try:
        encoded = component.encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    return "path component over 255 bytes" if len(encoded) > MAX_COMPONENT_BYTES else None


def in_order(keys: Sequence[str], *, after: str) -> bool:
    """Whether `keys`, those of one page, ascend from the key `after`, which the page before ended with."""
    return not keys or (after < keys[0] and all(map(lt, keys, islice(keys, 1, None))))


def ancestors(path: str) -> list[str]:
    """The directories above key `path`, root first, as far as they can be paths.

    `a/b/c` gives ``["", "a/", "a/b/"]``, `a//c` gives ``["", "a/"]``.
    """
    found = [""]
    at = path.find("/")
    while at >= 0 and not component_problem(path[len(found[-1]) : at]):
        found.append(path[: at + 1])
        at = path.find("/", at + 1)
    return found


def file_entry(name: str, info: ObjectInfo) -> Entry:
    """The entry for an object."""
    return Entry(name, info.size, info.mtime_ns, info.etag, info.storage_class)


def slice_of_directory(
    directory: str,
    objects: Iterable[ObjectInfo],
    prefixes: Iterable[str],
    *,
    root: str,
    after: str,
    last: bool,
) -> tuple[Slice, list[str]]:
    """What one page of a listing with delimiter says about `directory`, and the keys it had to skip.

    `root` is the mounted prefix; `after` is where the previous page ended (its slice's `upto`, or empty).
    """
    base = len(root) + len(directory)
    entries: list[Entry] = []
    skipped: list[str] = []
    upto = after
    for info in objects:
        name = info.key[base:]
        upto = max(upto, name)
        if not name:
            continue  # the directory's own marker
        if component_problem(name):
            skipped.append(info.key)
        else:
            entries.append(file_entry(name, info))
    for prefix in prefixes:
        name = prefix[base:]
        upto = max(upto, name)
        if component_problem(name[:-1]):
            skipped.append(prefix)
        else:
            entries.append(Entry(name))
    return Slice(directory, after, None if last else upto, entries), skipped


def slices_of_keys(objects: Sequence[ObjectInfo], *, root: str, start: str, after: str, upto: str | None) -> PageFacts:
    """What one page of a recursive listing, sorted by key, says about every directory that it touches.

    The page tells all keys in (after, upto], relative to `root`; upto None = to the end. The listing that it belongs to
    began at `start` (empty = the beginning): directories that began before it are not completed here.
    """
    facts = PageFacts()
    base = len(root)
    # Directories that the previous page left unfinished go on, and may turn out to have nothing more.
    entries: dict[str, list[Entry]] = {directory: [] for directory in ancestors(after)}
    for info in objects:
        if not _place(info, info.key[base:], entries):
            facts.skipped.append(info.key)
    unfinished = [] if upto is None else ancestors(upto)
    for directory in unfinished:  # where a key space was cut no key may lie: still nothing before the cut is a fact
        entries.setdefault(directory, [])
    for directory, found in entries.items():
        facts.slices.append(
            Slice(
                directory,
                after[len(directory) :] if after.startswith(directory) else "",
                None if upto is None or directory not in unfinished else upto[len(directory) :],
                found,
            )
        )
        if directory not in unfinished and directory >= start:
            facts.completed.append(directory)
    return facts


def _place(info: ObjectInfo, path: str, entries: dict[str, list[Entry]]) -> bool:
    """Put one key into the tree; False if it, or something below a directory of it, cannot be a path.

    The directories above an unmappable component do exist, as they would in a listing with delimiter.
    """
    directory = ""
    while True:
        slash = path.find("/", len(directory))
        name = path[len(directory) :] if slash < 0 else path[len(directory) : slash]
        if slash < 0 and not name:
            return True  # `directory` is a marker: it exists, which placing its parents has said
        if component_problem(name):
            return False
        if slash < 0:
            entries[directory].append(file_entry(name, info))
            return True
        child = path[: slash + 1]
        if child not in entries:
            entries[child] = []
            entries[directory].append(Entry(name + "/"))
        directory = child


@dataclass(slots=True)
class Difference:
    """How a slice differs from what was known, by entry name."""

    added: list[Entry] = field(default_factory=list)
    changed: list[Entry] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def diff(known: dict[str, tuple[str, int]], listed: Slice) -> Difference:
    """What `listed` adds to, changes in and removes from `known`: entry name to (etag, size).

    `known` holds the entries that the slice covers, and any others. Equal ETag and size mean unchanged, whatever
    the time says: attributes of an unchanged object must be stable, or the kernel drops its pages.
    """
    difference = Difference()
    seen = set()
    for entry in listed.entries:
        seen.add(entry.name)
        before = known.get(entry.name)
        if before is None:
            difference.added.append(entry)
        elif not entry.is_dir and before != (entry.etag, entry.size):
            difference.changed.append(entry)
    difference.removed = [name for name in known if name not in seen and listed.covers(name)]
    return difference
