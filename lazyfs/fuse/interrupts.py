"""Whether a signal that interrupts a request means that somebody wants the program to end.

The kernel tells of every signal, also of timers, profilers and children; but a program does not expect EINTR of a file
(Go, and everything with SA_RESTART, would fail). So only what ends programs ends their requests.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

AGAIN_S = 0.5
"""How long after a signal that means nothing it is looked for one that does."""
ENDING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_MASK = sum(1 << (number - 1) for number in ENDING)
_PENDING = re.compile(r"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$", re.MULTILINE)


def asked_to_end(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether thread `pid` has a signal pending that asks it to end. One that we cannot see (0: it lives in another
    container) or that is gone has: nobody would tell us later."""
    try:
        text = (proc / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return True
    return any(int(mask, 16) & _MASK for mask in _PENDING.findall(text))
