"""Which cached value goes first: least recently used, by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRU(Generic[K, V]):
    """A map that remembers sizes and the order of use. It never evicts by itself: `pop_oldest` is the caller's."""

    def __init__(self) -> None:
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def get(self, key: K) -> V | None:
        """The value, now the most recently used; None when absent."""
        item = self._items.get(key)
        if item is None:
            return None
        self._items.move_to_end(key)
        return item[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep `value`, counted as `size`; replaces what was there."""
        self.pop(key)
        self._items[key] = (value, size)
        self.size += size

    def pop(self, key: K) -> V | None:
        """Forget `key`; its value, or None."""
        item = self._items.pop(key, None)
        if item is None:
            return None
        self.size -= item[1]
        return item[0]

    def trim(self, count: int) -> None:
        """Forget the least recently used until at most `count` are left."""
        while len(self._items) > count:
            self.pop_oldest()

    def pop_oldest(self) -> tuple[K, V, int] | None:
        """Forget the least recently used; None when empty."""
        if not self._items:
            return None
        key, (value, size) = self._items.popitem(last=False)
        self.size -= size
        return key, value, size
