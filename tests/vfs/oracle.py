"""What a mount may say of a bucket that others change too.

Every state that the bucket has had is kept with the time at which it was superseded. A name has two sides, the object
of that name and whether keys begin with it and a slash; each side that is told must be what some state showed that
was in force within the lease, must not go back behind what was told before, and not behind our own changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

LOCAL = "<local>"
Side = tuple[str, str]  # ("file" | "directory", path)


class Told(NamedTuple):
    """One answer about a path: nothing, a directory, or a file of this ETag."""

    kind: str  # "nothing" | "directory" | "file"
    etag: str = ""


NOTHING = Told("nothing")


@dataclass(slots=True)
class _State:
    etags: dict[str, str]
    """Path to ETag; LOCAL for a file that is being created here."""
    directories: frozenset[str]
    bucket: dict[str, str]
    """The same without what is only here."""
    superseded_ns: float = math.inf


@dataclass
class Oracle:
    """The history of everything below the mounted prefix `root`."""

    root: str
    ttl_s: float
    clock: Callable[[], int]
    states: list[_State] = field(default_factory=list)
    believing: bool = False
    """Whether leases do not end: an index is believed until the mount's first refresh has caught up."""
    _floors: dict[Side, int] = field(default_factory=dict)
    _own_ns: dict[str, int] = field(default_factory=dict)
    _removed: set[Side] = field(default_factory=set)

    def observe(self, objects: Mapping[str, str], local: Iterable[str]) -> None:
        """The bucket (key to ETag) is so now, and these paths are being created by us."""
        etags = {key[len(self.root) :]: etag for key, etag in objects.items() if key.startswith(self.root)}
        bucket = dict(etags)
        etags |= dict.fromkeys(local, LOCAL)
        if self.states and (self.states[-1].etags, self.states[-1].bucket) == (etags, bucket):
            return
        if self.states:
            self.states[-1].superseded_ns = self.clock()
        self.states.append(_State(etags, _directories(etags), bucket))

    @property
    def now(self) -> int:
        """The number of the state in force."""
        return len(self.states) - 1

    def own_change(self, path: str, *sides: str, removed: str = "") -> None:
        """We just made these sides of `path` what they are in the state in force: nothing older may be told.

        The side `removed` may be told absent for a lease, whatever others have put there meanwhile; before the first
        refresh, until that. What we do to the other side asks nobody, so it does not end that.
        """
        for side in sides:
            self._floors[side, path] = self.now
        self._own_ns[path] = self.clock()
        self._removed -= {(side, path) for side in sides}
        if removed:
            self._removed.add((removed, path))

    def own_commit(self, path: str, at: int) -> None:
        """In state `at` our file reached the bucket: from then on its name is what the bucket has, and others may have
        changed that since."""
        for state in self.states[at:]:
            if state.etags.pop(path, None) is not None and path in state.bucket:
                state.etags[path] = state.bucket[path]
            state.directories = _directories(state.etags)
        self.own_change(path, "file")
        self._floors["file", path] = at

    def unchanged_since(self, path: str, told: Told, since: int) -> bool:
        """Whether `told` has been true all the time since state `since`."""
        return all(self._truth(state, path) == told for state in self.states[since:])

    def check(self, path: str, told: Told, *, since: int, forget_floor: bool = False) -> None:
        """Fail unless `told` may be said now by a call that began in state `since`.

        `forget_floor` is for names that a listing left out: it may have begun before our own change.
        """
        if told.kind == "file" and told.etag == LOCAL:
            assert self.states[-1].etags.get(path) == LOCAL, f"{path!r} is not being created"
            return
        if told.kind != "directory" and not (told.kind == "nothing" and self._was_removed("file", path)):
            want = told.etag or None
            self._explain("file", path, since, lambda state: state.etags.get(path) == want, forget_floor, told)
        if not (told.kind != "directory" and self._was_removed("directory", path)):
            want_directory = told.kind == "directory"
            self._explain(
                "directory", path, since, lambda state: (path in state.directories) == want_directory,
                forget_floor, told,
            )  # fmt: skip

    def _explain(
        self, side: str, path: str, since: int, shows: Callable[[_State], bool], forget_floor: bool, told: Told
    ) -> None:
        floor = self._floors.get((side, path), 0)
        for number in range(0 if forget_floor else floor, len(self.states)):
            state = self.states[number]
            if (number >= since or self._in_lease(state, path)) and shows(state):
                self._floors[side, path] = max(number, floor)
                return
        history = [(n, s.etags, s.superseded_ns) for n, s in enumerate(self.states)]
        raise AssertionError(
            f"told {told} of {path!r}: no state from {floor} on shows that of its {side} side within the lease;"
            f" now {self.clock()}, history {history[-8:]}"
        )

    def _in_lease(self, state: _State, path: str) -> bool:
        # What we changed ourselves gets a new lease; its other side was proven at most a lease before that.
        return self.believing or self._recently_ours(path) or self.clock() - state.superseded_ns < self.ttl_s * 1e9

    def _was_removed(self, side: str, path: str) -> bool:
        return (side, path) in self._removed and (self.believing or self._recently_ours(path))

    def _recently_ours(self, path: str) -> bool:
        above = path.rpartition("/")[0]
        return any(
            name in self._own_ns and self.clock() - self._own_ns[name] < self.ttl_s * 1e9 for name in (path, above)
        )

    @staticmethod
    def _truth(state: _State, path: str) -> Told:
        if path in state.directories:
            return Told("directory")
        etag = state.etags.get(path)
        return NOTHING if etag is None else Told("file", etag)


def _directories(paths: Iterable[str]) -> frozenset[str]:
    return frozenset(path[:at] for path in paths for at in range(len(path)) if path[at] == "/")
