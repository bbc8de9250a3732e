"""What is to be done to the bucket, and what a further change makes of it.

Pure. Promises that what a later change makes needless is dropped, that each change knows what its key will hold before
it as far as that can be known, and that changes are handed out (`take`) only when `changes.Order` lets them begin.

Words: a change is *taken* while somebody carries it out. A taken change that is not wanted any more is *withdrawn*:
what it does to the bucket is over only when its carrier says so, and what follows on its key waits for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from lazyfs.core.changes import Change, Op, Order
from lazyfs.core.errors import BusyError
from lazyfs.core.types import ANY, Condition, ObjectInfo

_EVERYTHING = 2**63 - 1
"""Known by what is renamed: all that was acknowledged before."""


@dataclass(slots=True)
class Plan:
    """Changes that become true together, behind all that are there."""

    newest: int
    added: list[Change] = field(default_factory=list)
    dropped: list[Change] = field(default_factory=list)

    def add(self, change: Change) -> None:
        """Give `change` the next number."""
        number = self.newest + len(self.added) + 1
        self.added.append(replace(change, number=number, knows=min(change.knows, number - 1)))


class Pending:
    """Changes, the newest with number `newest`. A file of up to `first_part` bytes vouches for others."""

    def __init__(self, *, newest: int, first_part: int) -> None:
        self.newest = newest
        self._first_part = first_part
        self._order = Order()
        self._taken: set[int] = set()
        self._withdrawn: set[int] = set()
        self._tried: set[int] = set()
        """Those of which something may be in the bucket."""
        self._ready: deque[int] = deque()
        self._waiting: dict[int, list[int]] = {}
        """By what they wait for. A number may be gone, here and in `_ready`."""

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Change]:
        """All of them, withdrawn ones too, in their order."""
        return iter(self._order)

    def wanted(self) -> list[Change]:
        """Those that shall be carried out, in their order."""
        return [change for change in self._order if self.is_wanted(change)]

    def is_wanted(self, change: Change) -> bool:
        """Whether whoever carries it out shall go on."""
        return change.number not in self._withdrawn

    def is_taken(self, change: Change) -> bool:
        """Whether somebody carries it out now, or has begun to and tries again."""
        return change.number in self._taken

    def latest(self, key: str) -> Change | None:
        """What the key shall become; None if the bucket says what it is."""
        return next((change for change in reversed(self._order.of_key(key)) if self.is_wanted(change)), None)

    def is_latest(self, change: Change) -> bool:
        """Whether its key shall become what `change` says."""
        latest = self.latest(change.key)
        return latest is not None and latest.number == change.number

    def made(self, key: str) -> Change | None:
        """What makes the key exist; None if the bucket says what it is, or if it shall not exist."""
        latest = self.latest(key)
        return latest if latest is not None and latest.makes else None

    def of_key(self, key: str) -> list[Change]:
        """All changes of `key`, withdrawn ones too, oldest first."""
        return self._order.of_key(key)

    def find(self, number: int) -> Change | None:
        """The change with this number; None if it is over."""
        return self._order.get(number) if number in self._order else None

    def current(self, change: Change) -> Change:
        """`change`, which is not over, as it is now: what its key holds may be known by now, and its metadata may have
        been amended."""
        return self._order.get(change.number)

    # -- planning: nothing is true yet -----------------------------------------------------------------------------

    def plan(self) -> Plan:
        """An empty one. No other is made before it is true, or forgotten."""
        return Plan(self.newest)

    def put(self, plan: Plan, change: Change) -> None:
        """The key of `change` shall be so."""
        self._replace(plan, replace(change, vouches=change.size <= self._first_part))

    def make_directory(self, plan: Plan, key: str, metadata: Mapping[str, str]) -> None:
        """The marker `key` shall exist. It vouches for nothing."""
        self._replace(plan, Change(number=0, op=Op.PUT, key=key, metadata=metadata))

    def delete(self, plan: Plan, key: str, condition: Condition) -> None:
        """`key`, which holds what `condition` says, shall not exist."""
        latest = self.latest(key)
        if latest is None:
            plan.add(Change(number=0, op=Op.DELETE, key=key, condition=condition))
        elif latest.makes:
            self._leave(plan, key, latest)

    def rename(self, plan: Plan, old: str, new: str, clean: ObjectInfo) -> None:
        """`new` shall hold what `old` holds, and `old` nothing. `clean` is what the bucket has of `old`, if that is
        what counts. BusyError if `old` is pending as a copy itself."""
        pending = self.latest(old)
        made = _moved(new, pending or clean)
        self._replace(plan, replace(made, vouches=True, knows=_EVERYTHING))
        self._leave(plan, old, pending)

    def rename_below(self, plan: Plan, old: str, new: str, objects: Mapping[str, ObjectInfo]) -> None:
        """The same for all keys below `old`, a directory; `objects` are what the bucket has there."""
        pending = {change.key: change for change in self.wanted() if change.key.startswith(old)}
        puts = [change for change in pending.values() if change.makes]
        clean = [info for key, info in objects.items() if key not in pending]
        moved = [_moved(new + put.key[len(old) :], put) for put in puts]
        copies = [_moved(new + info.key[len(old) :], info) for info in clean]
        large = [change for change in copies + moved if change.size > self._first_part]
        for change in large:
            self._replace(plan, replace(change, vouches=False))
        for change in copies:  # the small ones wait for the large ones, and what is not uploaded for everything
            if change.size <= self._first_part:
                self._replace(plan, replace(change, vouches=True, knows=plan.newest + len(large)))
        for change in moved:
            if change.size <= self._first_part:
                self._replace(plan, replace(change, vouches=True, knows=_EVERYTHING))
        for key in sorted({old, *objects, *pending}, reverse=True):  # a directory after what it held
            if key not in pending:
                self.delete(plan, key, ANY)
            elif pending[key].makes:
                self._leave(plan, key, pending[key])

    def divert(self, plan: Plan, change: Change, key: str) -> None:
        """The content of `change`, which is taken, shall go to `key`, which is free, and not to its own."""
        plan.add(replace(change, key=key, condition=Condition(absent=True), vouches=False))
        plan.dropped.append(change)
        self._taken.discard(change.number)

    def followers(self, change: Change, etag: str) -> list[Change]:
        """The changes that will find what `change` made of their key, now that this is known."""
        outcome = _outcome(change)
        later = [found for found in self._order.of_key(change.key) if found.condition.etag == outcome]
        return [replace(found, condition=Condition(etag=etag)) for found in later]

    def _replace(self, plan: Plan, change: Change) -> None:
        """Plan `change`, and drop what it makes needless; it may expect what that found."""
        latest = self.latest(change.key)
        if latest is None:
            if self._order.of_key(change.key):  # what was withdrawn there may have done anything
                change = replace(change, condition=ANY)
        elif latest.number in self._taken:
            condition = Condition(etag=_outcome(latest)) if latest.makes else Condition(absent=True)
            change = replace(change, condition=condition)
        else:
            plan.dropped.append(latest)
            change = replace(change, condition=latest.condition)
        plan.add(change)

    def _leave(self, plan: Plan, key: str, pending: Change | None) -> None:
        """Plan that `key` holds nothing, instead of what is pending."""
        condition = ANY
        if pending is not None:
            plan.dropped.append(pending)
            if pending.number not in self._taken:
                condition = pending.condition
                is_alone = len(self._order.of_key(key)) == 1
                if is_alone and condition.absent and pending.number not in self._tried:
                    return  # the bucket never had it
        plan.add(Change(number=0, op=Op.DELETE, key=key, condition=condition))

    # -- what is true -------------------------------------------------------------------------------------------------

    def make_true(self, plan: Plan) -> list[Change]:
        """The plan is what is to be done now. Those that are over: what nobody carries out of what it dropped."""
        for change in plan.added:
            self.admit(change)
        over = [change for change in plan.dropped if change.number not in self._taken]
        self._withdrawn |= {change.number for change in plan.dropped if change.number in self._taken}
        return over

    def admit(self, change: Change, *, tried: bool = False) -> None:
        """`change`, numbered, is to be done; `tried`: something of it may be in the bucket."""
        self.newest = max(self.newest, change.number)
        self._order.add(change)
        if tried:
            self._tried.add(change.number)
        self._look(change.number)

    def change(self, change: Change) -> None:
        """The change of this number is now so; see `current`."""
        self._order.change(change)

    def take(self) -> Change | None:
        """The next change that may begin, which is carried out from now on; None if there is none now."""
        while self._ready:
            number = self._ready.popleft()
            if number in self._order and number not in self._taken:
                self._taken.add(number)
                self._tried.add(number)
                return self._order.get(number)
        return None

    def settle(self, change: Change) -> None:
        """`change` is over, one way or the other; what waited for it may begin."""
        self._order.remove(change.number)
        for known in (self._taken, self._withdrawn, self._tried):
            known.discard(change.number)
        for number in self._waiting.pop(change.number, ()):
            self._look(number)

    def _look(self, number: int) -> None:
        """See whether the change may begin, now that something has changed."""
        if number in self._order:
            blocker = self._order.blocker(number)
            if blocker is None:
                self._ready.append(number)
            else:
                self._waiting.setdefault(blocker, []).append(number)


def _outcome(change: Change) -> str:
    """Stands for the ETag of what `change` makes until that is known."""
    return f"<#{change.number}>"


def _moved(key: str, what: Change | ObjectInfo) -> Change:
    """What makes `key` of what is pending, or of what the bucket has."""
    if isinstance(what, Change):
        if what.op is not Op.PUT:
            raise BusyError(f"{what.key!r} is being renamed")
        return replace(what, key=key, condition=ANY)
    if what.key.endswith("/"):  # markers are made anew: some servers give them no ETag that a copy could ask for
        return Change(number=0, op=Op.PUT, key=key)
    return Change(number=0, op=Op.COPY, key=key, source=what.oid, size=what.size, mtime_ns=what.mtime_ns)
