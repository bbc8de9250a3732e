"""When to look for credentials anew: the session of an SDK reads a credentials file once, and then never again.

Promises that those who find theirs expired at the same time cause one look, and that a look that found nothing is not
repeated for a while: it may start a process of the user's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from lazyfs.core.errors import LazyfsError

log = logging.getLogger("lazyfs.store")
_PAUSE_S = 2.0


class Keys:
    """Counts the credentials of one client. Called in worker threads."""

    def __init__(self) -> None:
        self.version = 0
        """How often there were others."""
        self._lock = threading.Lock()
        self._looked: float | None = None

    def renew(self, version: int, look: Callable[[], bool]) -> bool:
        """Whether there are others than those of `version`; `look` takes what is there, False if that is the same."""
        with self._lock:
            if version != self.version:
                return True
            if self._looked is not None and time.monotonic() - self._looked < _PAUSE_S:
                return False
            try:
                if not look():
                    return False
            except LazyfsError as error:
                log.info("new credentials cannot be had: %s", error)
                return False
            finally:
                self._looked = time.monotonic()
            self.version += 1
        log.info("the credentials had expired, and others are there")
        return True
