"""The shared tier's engine on Redis, or a cluster of it, or what speaks the same. The only file that says redis.

One value a block: MGET brings those of an extent in one round trip, and a random reader gets what it asked for. In a
cluster the blocks of one extent share a hash tag, so that they lie in one slot and one MGET brings them there too.

redis-py's asyncio does not run under trio, so its synchronous client is used in this engine's own few threads. Its
retries are off: a miss is cheaper. What it says is told without the password.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
import trio
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from lazyfs.cache.engine import Name, RedisAddress, Value
from lazyfs.core.errors import CacheError, CacheRefusedError
from lazyfs.core.types import Buffer

T = TypeVar("T")

CONNECT_S = 0.5
SILENCE_S = 1.0
"""A thread that nobody waits for any more ends after this."""
TAG_BLOCKS = 16
"""Blocks of an object that share a slot of a cluster: an extent of 4 MiB, if it begins at a multiple of that."""


class RedisEngine:
    """See `engine.Engine`. Values are forgotten after `ttl_s` seconds, never if that is infinite."""

    run_blocks = 1
    gets = 4
    """Python parses about as fast as one core can; four keep the link busy meanwhile."""
    deadline_s = 0.2
    """Four extents of 4 MiB take 0.13 s at 1 Gbit/s, the slowest link on which sharing makes sense."""

    def __init__(self, address: RedisAddress, *, ttl_s: float) -> None:
        self.where = address.where
        self._address = address
        self._expiry: dict[str, int] = {} if math.isinf(ttl_s) else {"ex": max(1, math.ceil(ttl_s))}
        self._limiter = trio.CapacityLimiter(self.gets + 2)
        self._lock = threading.Lock()
        self._client: Any = None

    async def get_many(self, names: Sequence[Name], *, limit_bytes: int) -> Sequence[Buffer | None]:
        """See Engine.get_many. The server bounds a value, at 512 MB; that it is none shows when it is decoded."""
        del limit_bytes
        keys = [_key(name) for name in names]
        fetch: Callable[[Any], Sequence[Buffer | None]]
        if self._address.cluster:
            fetch = lambda client: client.mget_nonatomic(keys)  # noqa: E731 - a twin of the next
        else:
            fetch = lambda client: client.mget(keys)  # noqa: E731
        return await self._call(fetch)

    async def put_many(self, values: Sequence[Value]) -> None:
        """See Engine.put_many."""

        def store(client: Any) -> None:
            pipeline = client.pipeline(transaction=False)
            for name, pieces in values:
                pipeline.set(_key(name), b"".join(pieces), **self._expiry)
            pipeline.execute()

        await self._call(store)

    async def delete_many(self, names: Sequence[Name]) -> None:
        """See Engine.delete_many."""

        def delete(client: Any) -> None:
            for name in names:
                client.delete(_key(name))

        await self._call(delete)

    async def aclose(self) -> None:
        """See Engine.aclose."""
        client, self._client = self._client, None
        if client is not None:
            await trio.to_thread.run_sync(client.close, abandon_on_cancel=True)

    async def _call(self, work: Callable[[Any], T]) -> T:
        """Run `work` with the client on a thread. A cancelled caller leaves it to end by its own timeouts."""

        def run() -> T:
            try:
                return work(self._connected())
            except redis.ResponseError as error:
                is_outside = isinstance(error, redis.exceptions.ClusterError) or "unauthenticated" in str(error)
                raise (CacheError if is_outside else CacheRefusedError)(self._told(error)) from None
            except Exception as error:  # noqa: BLE001 - its classes have no root, and none may leave with a secret
                raise CacheError(self._told(error)) from None

        return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._limiter)

    def _connected(self) -> Any:
        """The client; that of a cluster asks for its nodes when it is made."""
        with self._lock:
            if self._client is None:
                self._client = _client(self._address)
            return self._client

    def _told(self, error: Exception) -> str:
        """What the error says, in one line, without the password that the URL had."""
        text, password = _PIPELINE.sub("", str(error)), self._address.password
        if password:
            text = text.replace(password, "***")
        return " ".join(text.split())[:300] or type(error).__name__


_PIPELINE = re.compile(r"\ACommand # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
"""What redis-py puts before an error: the command, with the bytes that were to be stored."""


def _key(name: Name) -> str:
    return f"lazyfs:{{{name.version}.{name.first // TAG_BLOCKS}}}{name.first}"


def _client(address: RedisAddress) -> Any:
    options: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "username": address.username,
        "password": address.password,
        "socket_timeout": SILENCE_S,
        "socket_connect_timeout": CONNECT_S,
        "socket_read_size": 256 * 1024,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if address.tls:
        options |= {
            "ssl": True,
            "ssl_ca_certs": address.ca_file,
            "ssl_certfile": address.cert_file,
            "ssl_keyfile": address.key_file,
        }
    if address.cluster:
        return RedisCluster(**options)
    return redis.Redis(db=address.db, **options)
