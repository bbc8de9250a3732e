"""Changes that a program was told are done and the bucket does not have yet, and in which order they may reach it.

Pure. Promises that a reader of the bucket never sees what vouches for other files before those files (`Order.blocker`),
and that no two changes wait for each other: one waits only for changes with a lower number.

What vouches: a file of one part and a file that was renamed are how programs say that others are complete (an index, a
`.metadata`, `latest`). Such a file waits for what was acknowledged, in its directory and below, before it got its last
byte: the program cannot have known more. So files that are written side by side also go up side by side, and a chain of
files is as much of a chain as it is without write-back.
"""

from __future__ import annotations

import enum
import json
import zlib
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lazyfs.core.types import ANY, Condition, ObjectId

MARK = "lazyfs-write"
"""The key of the user metadata that has the token of the content. By it an object is known as ours, if its upload was
done and the answer was lost, or the daemon killed."""

_MAX = 2**63 - 1


class Op(enum.StrEnum):
    """What a change does to its key."""

    PUT = "put"
    COPY = "copy"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of one key. `number`s grow in the order in which programs were told.

    A PUT's bytes lie in the file named `token`, which no other content ever has; a directory's marker has none. `knows`
    is the newest change that was acknowledged when the content got its last byte. `condition` is what the key is
    expected to hold before; of a COPY or DELETE it only says what a later change of the key may expect.
    """

    number: int
    op: Op
    key: str
    size: int = 0
    mtime_ns: int = 0
    token: str = ""
    source: ObjectId | None = None
    """Of a COPY."""
    knows: int = 0
    vouches: bool = False
    condition: Condition = ANY
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> ObjectId:
        """The version that has the bytes until the bucket has them under this key."""
        return self.source if self.source is not None else local_version(self.token)

    @property
    def makes(self) -> bool:
        """Whether the key exists afterwards."""
        return self.op is not Op.DELETE

    @property
    def is_marker(self) -> bool:
        """Whether the key only says that there is a directory."""
        return self.key.endswith("/")


def local_version(token: str) -> ObjectId:
    """The identity of bytes that no bucket has: no key is empty, so it is no object's."""
    return ObjectId("", f"<{token}>")


def encode_change(change: Change) -> str:
    """One line of JSON, without the number, and a checksum of both."""
    record: dict[str, Any] = {"op": change.op.value, "key": change.key, "size": change.size}
    record |= {"mtime_ns": change.mtime_ns, "token": change.token, "knows": change.knows, "vouches": change.vouches}
    if change.source is not None:
        record["source"] = list(change.source)
    if change.condition.is_set:
        record["absent"], record["etag"] = change.condition.absent, change.condition.etag
    if change.metadata:
        record["metadata"] = dict(change.metadata)
    text = json.dumps(record)
    return f"{text}\t{_checksum(change.number, text):08x}"


def _checksum(number: int, text: str) -> int:
    return zlib.crc32(f"{number} {text}".encode(errors="surrogatepass"))


def decode_change(number: int, text: str) -> Change:
    """The inverse of `encode_change`. ValueError for anything else."""
    try:
        text, is_checked, checksum = text.partition("\t")  # JSON has no bare tab; once there was no checksum
        if is_checked and checksum != f"{_checksum(number, text):08x}":
            raise ValueError(f"change {number} is not as it was written")
        record = json.loads(text)
        source, metadata = record.get("source"), record.get("metadata", {})
        token = record["token"]
        if token and not (token.isascii() and token.isalnum()):  # it becomes the name of a file
            raise ValueError(token)
        size, mtime_ns, etag = int(record["size"]), int(record["mtime_ns"]), record.get("etag")
        if not (0 <= size <= _MAX and abs(mtime_ns) <= _MAX and isinstance(etag, str | None)):
            raise ValueError(record)
        return Change(
            number=number,
            op=Op(record["op"]),
            key=str(record["key"]),
            size=size,
            mtime_ns=mtime_ns,
            token=token,
            source=None if source is None else ObjectId(str(source[0]), str(source[1])),
            knows=int(record["knows"]),
            vouches=bool(record["vouches"]),
            condition=Condition(bool(record.get("absent")), etag),
            metadata={str(name): str(value) for name, value in metadata.items()},
        )
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a change: {error!r}") from error


class Order:
    """The changes that are not done yet, and what each of them must wait for."""

    def __init__(self) -> None:
        self._changes: dict[int, Change] = {}
        self._by_key: dict[str, list[int]] = {}
        self._by_source: dict[str, list[int]] = {}
        self._makers: dict[str, list[int]] = {}
        """PUTs and COPYs by each directory above their key; ascending, as in the others."""
        self._deletes: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self._changes)

    def __iter__(self) -> Iterator[Change]:
        """In the order of their numbers."""
        return iter(list(self._changes.values()))  # as they were added

    def __contains__(self, number: int) -> bool:
        return number in self._changes

    def get(self, number: int) -> Change:
        """The change with this number, which is there."""
        return self._changes[number]

    def of_key(self, key: str) -> list[Change]:
        """The changes of `key`, oldest first."""
        return [self._changes[number] for number in self._by_key.get(key, ())]

    def add(self, change: Change) -> None:
        """`change` is to be done. Its number is larger than that of any before."""
        self._changes[change.number] = change
        for table, name in self._places(change):
            insort(table.setdefault(name, []), change.number)

    def remove(self, number: int) -> None:
        """It is done, or not wanted any more."""
        change = self._changes.pop(number)
        for table, name in self._places(change):
            numbers = table[name]
            del numbers[bisect_left(numbers, number)]
            if not numbers:
                del table[name]

    def change(self, change: Change) -> None:
        """The change with this number is now so; it has the same key, source and kind."""
        self._changes[change.number] = change

    def blocker(self, number: int) -> int | None:
        """The newest change that must be done before this one may begin; None if there is none."""
        change = self._changes[number]
        found = [
            _newest(self._by_key.get(change.key), number),
            _newest(self._by_source.get(change.key), number),  # it must be copied before it is changed
        ]
        if change.op is Op.DELETE:
            # What replaces the deleted comes first; of a directory, so does what it held.
            found.append(_newest(self._makers.get(""), number))
            if change.key.endswith("/"):
                found.append(_newest(self._deletes.get(change.key), number))
        elif change.vouches:
            found.append(_newest(self._makers.get(directory_of(change.key)), min(change.knows + 1, number)))
        return max((blocker for blocker in found if blocker is not None), default=None)

    def _places(self, change: Change) -> Iterator[tuple[dict[str, list[int]], str]]:
        yield self._by_key, change.key
        if change.source is not None:
            yield self._by_source, change.source.key
        table = self._makers if change.makes else self._deletes
        cut = -1
        yield table, ""
        while (cut := change.key.find("/", cut + 1, len(change.key) - 1)) >= 0:
            yield table, change.key[: cut + 1]


def directory_of(key: str) -> str:
    """The directory that `key`, a file or a marker, lies in: empty or ending in `/`."""
    return key[: key.rfind("/", 0, len(key) - 1) + 1]


def _newest(numbers: list[int] | None, below: int) -> int | None:
    """The largest of the ascending `numbers` that is below `below`."""
    if numbers is None:
        return None
    position = bisect_left(numbers, below)
    return numbers[position - 1] if position else None
