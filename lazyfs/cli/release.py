"""`lazyfs release`: gives room back that files take here, without touching the bucket."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import click

from lazyfs.cli.output import Troubles, echo_json, say
from lazyfs.cli.places import Place, locate
from lazyfs.core.oldest import OldestFirst
from lazyfs.core.selection import Selection
from lazyfs.core.units import format_size, parse_duration, parse_size

_AT_ONCE = 200
"""Files of one message."""
_SIZE_AT_ONCE = 64 * 1024**3
"""And their size: the daemon looks for each of their blocks."""
MAX_CANDIDATES = 100_000
"""That are held to find the oldest: some 40 MB. Where more are needed, these go first and it is looked again."""
_LOOSE = frozenset({"partial", "archived"})
_FAST = frozenset({"dirty", "uploading", "failed"})


class Candidate(NamedTuple):
    """A file that may go."""

    place: Place
    ino: int
    path: str
    bytes: int
    """Of it that are here."""
    size: int


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--older-than", metavar="TIME", help="Only what has been in the cache directory for so long, like 7d.")
@click.option("--need", metavar="SIZE", help="Only so much, of what is here for longest, like 50GiB.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one a file, for programs.")
def release(paths: tuple[str, ...], older_than: str | None, need: str | None, dry_run: bool, as_json: bool) -> int:
    """Drop what is here of files, or of all below directories, from memory and the cache directory.

    They stay in the bucket and in the mount, and are fetched again by whoever reads them. What waits for its upload is
    left alone, and so is what is pinned. PATH may be a glob in quotes.
    """
    chosen = _Choice(
        paths,
        older_s=0.0 if older_than is None else parse_duration(older_than),
        need=None if need is None else parse_size(need),
        dry_run=dry_run,
    )
    gone = chosen.released()
    if as_json:
        echo_json({"path": one.place.full(one.path), "bytes": one.bytes, "released": not dry_run} for one in gone)
    files = size = 0
    for files, one in enumerate(() if as_json else gone, 1):  # noqa: B007 - how many there were
        size += one.bytes
        if dry_run:
            say(f"{format_size(one.bytes):>10}  {one.place.full(one.path)}")
    if not as_json:
        say(f"{'would release' if dry_run else 'released'} {files:,} files, {format_size(size)}")
    if chosen.waiting:
        say(f"{chosen.waiting:,} files are written, or wait for their upload, and were left alone", err=True)
    if chosen.pinned:
        say(f"{chosen.pinned:,} files are pinned, and were left alone (lazyfs unpin)", err=True)
    return chosen.troubles.exit_code


class _Choice:
    """What goes of `paths`, and what was left alone."""

    def __init__(self, paths: tuple[str, ...], *, older_s: float, need: int | None, dry_run: bool) -> None:
        self._paths = paths
        self._older_s = older_s
        self._need = need
        self._dry_run = dry_run
        self.troubles = Troubles()
        self.waiting = self.pinned = 0

    def released(self) -> Iterator[Candidate]:
        """Release, and tell what has gone; in a dry run what would."""
        if self._need is None:
            yield from self._go(one for one, _ in self._candidates())
            return
        left, again = self._need, True
        while again and left > 0 and not self.troubles.count:
            again, gone = False, 0
            oldest: OldestFirst[Candidate] = OldestFirst(need=left, limit=MAX_CANDIDATES)
            self.waiting = self.pinned = 0
            for candidate, stored_s in self._candidates():
                oldest.add(stored_s, candidate.bytes, candidate)
            for candidate in self._go(oldest.chosen()):
                gone += candidate.bytes
                yield candidate
            left -= gone
            again = oldest.has_dropped and gone > 0 and not self._dry_run

    def _candidates(self) -> Iterator[tuple[Candidate, float]]:
        """What may go, and since when it has been here."""
        selection = Selection(states=_LOOSE | _FAST).dump()
        now_s = time.time()

        def below(path: str) -> Iterator[tuple[Candidate, float]]:
            place = locate(path)
            for entry in place.entries(recursive=True, asks=False, selection=selection):
                if entry["state"] in _FAST:
                    self.waiting += 1
                elif entry["pinned"]:
                    self.pinned += 1
                elif entry["resident"] and self._is_old(entry, now_s):
                    stored_s = now_s if entry["stored_s"] is None else entry["stored_s"]
                    yield (
                        Candidate(place, entry["ino"], entry["path"], entry["resident"], entry["size"]),
                        stored_s,
                    )

        seen: set[tuple[str, int]] = set()
        for candidate, stored_s in self.troubles.each(self._paths, below):
            if len(self._paths) > 1:  # one path may lie in the other
                name = (candidate.place.registration.mountpoint, candidate.ino)
                if name in seen:
                    continue
                seen.add(name)
            yield candidate, stored_s

    def _is_old(self, entry: dict[str, Any], now_s: float) -> bool:
        """Whether it has been on the disk for long enough. Of what is in memory only that is not known."""
        if not self._older_s:
            return True
        return entry["stored_s"] is not None and now_s - entry["stored_s"] >= self._older_s

    def _go(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        if self._dry_run:
            yield from candidates
            return
        some: list[Candidate] = []
        size = 0
        for candidate in candidates:
            is_elsewhere = bool(some) and some[0].place.registration != candidate.place.registration
            if is_elsewhere or len(some) >= _AT_ONCE or size > _SIZE_AT_ONCE:
                yield from self._release(some)
                some, size = [], 0
            some.append(candidate)
            size += candidate.size
        if some:
            yield from self._release(some)

    def _release(self, some: list[Candidate]) -> Iterator[Candidate]:
        told = some[0].place.ask("release", inos=[one.ino for one in some])
        released, kept = dict(told["released"]), dict(told["kept"])
        for one in some:
            if one.ino in released:
                yield one._replace(bytes=released[one.ino])
            else:
                self.troubles.tell(f"{one.place.full(one.path)} {kept[one.ino]}; it was left alone")
