"""What the shared tier asks of an engine that keeps values for many nodes, and the addresses of the engines.

An engine is a thin client: it moves values by name and says when it could not. What the values mean, how long an
answer may take and when to do without the engine is `shared.SharedTier`'s to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lazyfs.core.errors import StartupError
from lazyfs.core.types import Buffer


class Name(NamedTuple):
    """Which value: letters and digits that stand for a version of an object, and the number of its first block."""

    version: str
    first: int


class Value(NamedTuple):
    """What is stored under `name`: the pieces, one after the other."""

    name: Name
    pieces: Sequence[Buffer]


class Engine(Protocol):
    """Keeps values by name, for a while. All methods raise CacheError and nothing else; none repeats a secret.

    where       its name for people, without secrets
    run_blocks  how many neighbouring blocks one value holds at the most
    gets        how many `get_many` it serves well at a time
    deadline_s  after which an answer to `get_many` is not worth waiting for
    """

    where: str
    run_blocks: int
    gets: int
    deadline_s: float

    async def get_many(self, names: Sequence[Name], *, limit_bytes: int) -> Sequence[Buffer | None]:
        """The value of each name, None where there is none. One of more than `limit_bytes` is not a value."""
        ...

    async def put_many(self, values: Sequence[Value]) -> None:
        """Keep the values. CacheRefusedError if the engine is well but does not take them."""
        ...

    async def delete_many(self, names: Sequence[Name]) -> None:
        """Forget the values. No error where there is none."""
        ...

    async def aclose(self) -> None:
        """Let go of connections. No call follows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Where a Redis is, and as whom. The password never shows in a repr; the files are paths in PEM form."""

    host: str
    port: int = 6379
    db: int = 0
    cluster: bool = False
    tls: bool = False
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @property
    def where(self) -> str:
        """The address for people, without user and password."""
        scheme = ("rediss" if self.tls else "redis") + ("+cluster" if self.cluster else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}" + ("" if self.cluster else f"/{self.db}")

    @property
    def has_secret(self) -> bool:
        """Whether it holds what others must not see."""
        return self.password is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketAddress:
    """The bucket and the prefix of the values; `prefix` is empty or ends in a slash. Endpoint None: the mount's."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None

    @property
    def where(self) -> str:
        """The address for people."""
        server = f" on {self.endpoint_url}" if self.endpoint_url else ""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/") + server

    has_secret = False


def open_redis(address: RedisAddress, *, ttl_s: float) -> Engine:
    """The engine on this Redis; no connection is made. StartupError if redis-py is not installed."""
    try:
        from lazyfs.cache.redis import RedisEngine  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise StartupError('a shared cache on Redis needs redis-py: pip install "lazyfs[redis]"') from error
    return RedisEngine(address, ttl_s=ttl_s)
