"""What a network and an endpoint can do to one request: each fault is a function of the exchange that it befalls.

`FAULTS` holds them by name, with what may be expected of whoever meets one for ever; `Injector` says which requests
they befall, and counts.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from tests.campaign import SEED, times
from tests.proxy import Answer, Exchange, Fault, Seen, error

_DRIP_S = 0.1
"""Between two bytes of a slow answer; shorter than any silence that the tests allow."""


@dataclass(frozen=True)
class Kind:
    """`numbers` is what a program may be told when it lasts; `executed`: the server may have done what was asked;
    `needs_body`: nothing of it can be seen in the answer to a HEAD; `silent`: noticed by a timeout only."""

    strike: Fault
    numbers: frozenset[int] = frozenset({errno.EIO})
    executed: bool = False
    needs_body: bool = False
    silent: bool = False
    transient: bool = True


def refusing(status: int, code: str, **headers: str) -> Fault:
    """The endpoint refuses, and does nothing."""
    return lambda exchange: exchange.tell(error(status, code, **headers))


def reset_before(exchange: Exchange) -> None:
    exchange.reset()


def reset_after(exchange: Exchange) -> None:
    exchange.ask()
    exchange.reset()


def reset_within(exchange: Exchange) -> None:
    answer = exchange.ask()
    exchange.tell(answer, upto=len(answer.body) // 2)
    exchange.reset()


def closed_after(exchange: Exchange) -> None:
    exchange.ask()
    exchange.end()


def truncated(exchange: Exchange) -> None:
    answer = exchange.ask()
    exchange.tell(answer, upto=len(answer.body) // 2, length=max(1, len(answer.body)))
    exchange.end()


def stalled(exchange: Exchange) -> None:
    answer = exchange.ask()
    exchange.tell(answer, upto=len(answer.body) // 2, length=max(1, len(answer.body)))
    exchange.wait_gone()


def silent(exchange: Exchange) -> None:
    exchange.ask()
    exchange.wait_gone()


def dripping(exchange: Exchange) -> None:
    """An answer that is never silent for long, and never ends."""
    answer = exchange.ask()
    exchange.tell(answer, upto=0, length=10**6)
    _drip(exchange, b" ")


def dripping_head(exchange: Exchange) -> None:
    exchange.ask()
    exchange.send(b"HTTP/1.1 200 OK\r\n")
    _drip(exchange, b"X-Filler: x\r\n")


def _drip(exchange: Exchange, drop: bytes) -> None:
    pause = threading.Event()
    with contextlib.suppress(OSError):
        while not pause.wait(_DRIP_S):
            exchange.send(drop)
    exchange.end()


def too_short(exchange: Exchange) -> None:
    """The answer says that it is half of what it is, and is."""
    answer = exchange.ask()
    half = answer.body[: len(answer.body) // 2]
    exchange.tell(replace(answer, body=half))


def too_long(exchange: Exchange) -> None:
    answer = exchange.ask()
    exchange.tell(answer, length=len(answer.body) + 100)
    exchange.end()


def whole(exchange: Exchange) -> None:
    """A range is answered by the whole object."""
    exchange.tell(exchange.ask(without="range"))


def empty_answer(exchange: Exchange) -> None:
    exchange.tell(Answer(exchange.ask().status, {}, b""))


def login_page(exchange: Exchange) -> None:
    """A portal between us and the endpoint, which speaks for it."""
    exchange.tell(Answer(200, {"Content-Type": "text/html"}, b"<html><body>Please log in<br></body></html>"))


def late_error(exchange: Exchange) -> None:
    """Begun with 200, then an error: S3 does that with completions and copies."""
    exchange.tell(Answer(200, {"Content-Type": "application/xml"}, error(500, "InternalError").body))


def garbage(exchange: Exchange) -> None:
    exchange.send(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
    exchange.end()


DENIED = frozenset({errno.EACCES})
FAULTS: dict[str, Kind] = {
    "503 SlowDown": Kind(refusing(503, "SlowDown")),
    "500 InternalError": Kind(refusing(500, "InternalError")),
    "502 of a proxy": Kind(lambda exchange: exchange.tell(Answer(502, {}, b"<html>Bad Gateway</html>"))),
    "reset before": Kind(reset_before),
    "reset after, answer lost": Kind(reset_after, executed=True),
    "closed after, answer lost": Kind(closed_after, executed=True),
    "reset within the answer": Kind(reset_within, executed=True, needs_body=True),
    "truncated answer": Kind(truncated, executed=True, needs_body=True),
    "answer stops for ever": Kind(stalled, executed=True, needs_body=True, silent=True),
    "silence, answer lost": Kind(silent, executed=True, silent=True),
    "slow drip": Kind(dripping, executed=True, needs_body=True, silent=True),
    "slow drip of headers": Kind(dripping_head, executed=True, silent=True),
    "Content-Length too short": Kind(too_short, executed=True, needs_body=True),
    "Content-Length too long": Kind(too_long, executed=True, needs_body=True),
    "empty answer": Kind(empty_answer, executed=True),
    "login page": Kind(login_page),
    "error after 200": Kind(late_error, needs_body=True),
    "not HTTP": Kind(garbage),
    "403 AccessDenied": Kind(refusing(403, "AccessDenied"), DENIED, transient=False),
    "400 ExpiredToken": Kind(refusing(400, "ExpiredToken"), DENIED, transient=False),
    "301 PermanentRedirect": Kind(refusing(301, "PermanentRedirect", x_amz_bucket_region="eu-west-1"), transient=False),
    "307 TemporaryRedirect": Kind(
        refusing(307, "TemporaryRedirect", Location="http://127.0.0.1:9/elsewhere"), transient=False
    ),
}


@dataclass
class Injector:
    """Lets `fault` befall requests of the verb `verb` while `left` is not used up; thread-safe."""

    verb: str
    fault: Fault
    left: int
    skip: int = 0
    """As many requests of the verb pass before."""
    struck: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, seen: Seen) -> Fault | None:
        with self._lock:
            if seen.verb != self.verb or self.left <= 0:
                return None
            if self.skip > 0:
                self.skip -= 1
                return None
            self.left -= 1
            self.struck += 1
            return self.fault


FOR_EVER = 10**9


def sample(names: list[str], usually: int, thorough: int, salt: int = 0) -> list[str]:
    """Some of `names`, the same for the same LAZYFS_SEED: another seed tries others."""
    return sorted(Random(SEED + salt).sample(names, min(times(usually, thorough), len(names))))


Chooser = Callable[[Seen], Fault | None]
