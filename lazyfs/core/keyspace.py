"""Dividing a bucket's key space among workers that list it, without knowing where the keys lie.

A listing is a set of *segments* of the key order, each listed page by page from its own start. A worker with nothing
to do takes half of what is left of a busy segment: the half beyond a key in the middle (`midpoint`), found by
arithmetic on the text. If nothing is there, one request was spent and the busy segment's end has moved nearer; so
splits find the keys in a few steps, whether they share a thousand directories or one.

Pure: the importer lists, this decides. Needs a server that lists in key order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from os.path import commonprefix

WORTH_A_CUT = 4.0
"""Pages that must be left of a segment, as far as can be told, for a second worker to be of use."""
GUESSES = 3
"""Cuts that may find nothing, for each full page: with one the workers find work too slowly (measured with 100,000
keys: 0.92 of obstore's time, 0.66 with two, 0.54 with three)."""
_DIGITS = 6
_SURROGATES = range(0xD800, 0xE000)
_LOW, _HIGH, _TOP = 0x1F, 0x7F, 0x10FFFF - len(_SURROGATES)


@dataclass(slots=True, eq=False)
class Segment:
    """The keys in (start, stop]; stop None is the end. `cursor` is how far it has been listed."""

    start: str
    stop: str | None
    cursor: str
    taken: bool = False
    done: bool = False
    pages: int = 0
    """Full pages that it gave."""
    first: str = ""
    """Where the first of them ended: `start` may lie far from any key."""

    @property
    def pages_left(self) -> float:
        """How many pages may be left, if the keys lie as densely as before; infinite while that cannot be told."""
        if self.stop is None and self.pages:
            return inf
        if self.stop is None or self.pages < 2:
            return 0.0
        shared = len(commonprefix((self.first, self.stop)))  # noqa: RUF071 - characters of keys are meant
        first, cursor, stop = (_position(text[shared:]) for text in (self.first, self.cursor, self.stop))
        return (self.pages - 1) * (stop - cursor) / (cursor - first) if cursor > first else inf


@dataclass(slots=True)
class KeySpace:
    """The segments of one listing. Keys are relative to the mounted prefix."""

    segments: list[Segment] = field(default_factory=lambda: [Segment("", None, "")])

    @property
    def done(self) -> bool:
        """Whether every key has been listed."""
        return all(segment.done for segment in self.segments)

    def take(self) -> Segment | None:
        """A segment to list: one that nobody has, or half of the busiest; None when there is nothing to share now."""
        free = next((segment for segment in self.segments if not segment.taken and not segment.done), None)
        if free is None and self._may_guess:
            free = self._split()
        if free is not None:
            free.taken = True
        return free

    @property
    def _may_guess(self) -> bool:
        """Whether another cut may be tried: those that found no full page, or have yet to, stay in proportion to the
        full pages. So a bucket of one page costs one request, and guesses about a large one grow with what it shows."""
        found = sum(segment.pages for segment in self.segments)
        return sum(not segment.pages for segment in self.segments) < GUESSES * found

    def advance(self, segment: Segment, cursor: str | None) -> None:
        """`segment` has been listed up to `cursor`, or to its end (None)."""
        if cursor is None or (segment.stop is not None and cursor >= segment.stop):
            segment.done = True
            return
        segment.cursor = cursor
        segment.pages += 1
        segment.first = segment.first or cursor

    def cuts(self) -> list[str]:
        """The keys at which segments begin, but for the first: directories above them were listed in pieces."""
        return [segment.start for segment in self.segments if segment.start]

    def _split(self) -> Segment | None:
        busy = [(segment.pages_left, segment) for segment in self.segments if not segment.done]
        for left, segment in sorted(busy, key=lambda pair: -pair[0]):
            if left < WORTH_A_CUT:
                return None
            cut = midpoint(segment.cursor, segment.stop)
            if cut is not None:
                right = Segment(cut, segment.stop, cut)
                segment.stop = cut
                self.segments.append(right)
                return right
        return None

    def dump(self) -> list[tuple[str, str, str | None, bool]]:
        """Everything, as plain data: (start, cursor, stop, done) of each segment. Finished ones count too: their cuts
        are still to be settled."""
        return [(segment.start, segment.cursor, segment.stop, segment.done) for segment in self.segments]

    @classmethod
    def load(cls, data: Iterable[tuple[str, str, str | None, bool]]) -> KeySpace:
        """The key space that `dump` described; what was done stays done."""
        return cls([Segment(start, stop, cursor, done=done) for start, cursor, stop, done in data])


def _position(text: str) -> float:
    """Where `text` lies among all texts, from 0 to 1, as far as its first characters tell."""
    return sum(min(ord(character), _HIGH) / 128.0 ** (at + 1) for at, character in enumerate(text[:_DIGITS]))


def midpoint(low: str, high: str | None) -> str | None:
    """A text strictly between `low` and `high` (None: no end), about in the middle; None if there is none to be found.

    Order is by code point, which is S3's order of UTF-8 bytes. Never holds a surrogate or a control character that
    `low` and `high` do not.
    """
    if high is not None and low >= high:
        return None
    at = 0
    while high is not None and at < len(low) and at < len(high) and low[at] == high[at]:
        at += 1
    below = max(_rank(low[at]), _LOW) if at < len(low) else _LOW
    above = _rank(high[at]) if high is not None else (_HIGH if below < _HIGH else _TOP)
    if above - below >= 2:
        return low[:at] + _character((below + above) // 2)
    if high is not None and at + 1 < len(high):
        return high[: at + 1]
    if at >= len(low):
        return None
    deeper = midpoint(low[at + 1 :], None)
    return None if deeper is None else low[: at + 1] + deeper


def _rank(character: str) -> int:
    """The number of a character, counted without the surrogates."""
    point = ord(character)
    return point - len(_SURROGATES) if point >= _SURROGATES.stop else point


def _character(rank: int) -> str:
    return chr(rank + len(_SURROGATES) if rank >= _SURROGATES.start else rank)
