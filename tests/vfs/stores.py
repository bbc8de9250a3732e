"""A store whose calls can be held and made to fail, one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import trio

from lazyfs.core.errors import LazyfsError
from lazyfs.core.types import ANY, Buffer, Condition, ObjectId, Part, Range, Upload
from lazyfs.store.base import DEFAULT_PUT, PutOptions
from lazyfs.store.memory import MemoryStore


@dataclass
class Script:
    """What shall happen to the calls of one verb. Numbers count calls of that verb from 1."""

    held: trio.Event | None = None
    """While set and not yet happened, calls wait for it before they take effect."""
    fail: dict[int, LazyfsError] = field(default_factory=dict)


class ScriptedStore(MemoryStore):
    """A MemoryStore that obeys a script. `calls` counts by verb, `now` and `peak` are the calls at once of each."""

    def __init__(self, *, min_part_size: int = 1, renames: bool = False) -> None:
        super().__init__(min_part_size=min_part_size, renames=renames, clock=lambda: 1_700_000_000 * 10**9)
        self.calls: Counter[str] = Counter()
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.parts: list[tuple[int, int]] = []
        self.conditions: list[Condition] = []
        self._scripts: dict[str, Script] = {}

    def hold(self, verb: str) -> trio.Event:
        """Let calls of `verb` wait until the event that this returns."""
        event = self._script(verb).held = trio.Event()
        return event

    def fail(self, verb: str, number: int, error: LazyfsError) -> None:
        """Let call `number` of `verb` fail without any effect."""
        self._script(verb).fail[number] = error

    def spans(self) -> list[tuple[int, int]]:
        """What was asked for by range GETs, in order."""
        return [(span.start, span.stop) for request in self.requests if (span := request.span) is not None]

    @property
    def fetched(self) -> int:
        """Bytes of all range GETs."""
        return sum(stop - start for start, stop in self.spans())

    @property
    def uploads(self) -> int:
        """Multipart uploads that nobody has ended."""
        return len(self._uploads)

    async def get_range(self, oid: ObjectId, span: Range) -> Buffer:
        async with _Call(self, "get"):
            return await super().get_range(oid, span)

    async def put(
        self, key: str, body: Buffer, *, options: PutOptions = DEFAULT_PUT, condition: Condition = ANY
    ) -> str:
        self.conditions.append(condition)
        async with _Call(self, "put"):
            return await super().put(key, body, options=options, condition=condition)

    async def copy(self, source: ObjectId, key: str) -> str:
        async with _Call(self, "copy"):
            return await super().copy(source, key)

    async def create_upload(self, key: str, *, options: PutOptions = DEFAULT_PUT) -> Upload:
        async with _Call(self, "create"):
            return await super().create_upload(key, options=options)

    async def upload_part(self, upload: Upload, number: int, body: Buffer) -> Part:
        self.parts.append((number, len(body)))
        async with _Call(self, "part"):
            return await super().upload_part(upload, number, body)

    async def copy_part(self, upload: Upload, number: int, source: ObjectId, span: Range) -> Part:
        async with _Call(self, "copy_part"):
            return await super().copy_part(upload, number, source, span)

    async def complete_upload(self, upload: Upload, parts: list[Part], *, condition: Condition = ANY) -> str:  # type: ignore[override]
        self.conditions.append(condition)
        async with _Call(self, "complete"):
            return await super().complete_upload(upload, parts, condition=condition)

    async def abort_upload(self, upload: Upload) -> None:
        async with _Call(self, "abort"):
            await super().abort_upload(upload)

    def _script(self, verb: str) -> Script:
        return self._scripts.setdefault(verb, Script())


class _Call:
    """One call in progress."""

    def __init__(self, store: ScriptedStore, verb: str) -> None:
        self._store, self._verb = store, verb

    async def __aenter__(self) -> None:
        store, verb = self._store, self._verb
        store.calls[verb] += 1
        number = store.calls[verb]
        store.now[verb] += 1
        store.peak[verb] = max(store.peak[verb], store.now[verb])
        script = store._script(verb)
        try:
            await _obey(script, number)
        except BaseException:
            store.now[verb] -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self._store.now[self._verb] -= 1


async def _obey(script: Script, number: int) -> None:
    if script.held is not None:
        await script.held.wait()
    if number in script.fail:
        raise script.fail[number]
