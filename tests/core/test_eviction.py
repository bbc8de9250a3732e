"""The LRU against a list that does the same slowly."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lazyfs.core.eviction import LRU

keys = st.integers(0, 7)


class LRUMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lru: LRU[int, str] = LRU()
        self.model: list[tuple[int, str, int]] = []  # least recently used first

    def take(self, key: int) -> tuple[int, str, int] | None:
        found = next((item for item in self.model if item[0] == key), None)
        if found is not None:
            self.model.remove(found)
        return found

    @rule(key=keys, value=st.text(max_size=2), size=st.integers(0, 9))
    def put(self, key: int, value: str, size: int) -> None:
        self.lru.put(key, value, size)
        self.take(key)
        self.model.append((key, value, size))

    @rule(key=keys)
    def get(self, key: int) -> None:
        found = self.take(key)
        if found is not None:
            self.model.append(found)
        assert self.lru.get(key) == (None if found is None else found[1])

    @rule(key=keys)
    def pop(self, key: int) -> None:
        found = self.take(key)
        assert self.lru.pop(key) == (None if found is None else found[1])

    @rule()
    def pop_oldest(self) -> None:
        expected = self.model.pop(0) if self.model else None
        assert self.lru.pop_oldest() == expected

    @invariant()
    def agrees(self) -> None:
        assert len(self.lru) == len(self.model)
        assert self.lru.size == sum(size for _, _, size in self.model)
        assert [key for key in range(8) if key in self.lru] == sorted(key for key, _, _ in self.model)


TestLRU = LRUMachine.TestCase
