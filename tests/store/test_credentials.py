"""Credentials that expire while the mount lives: others are picked up from wherever the first ones came."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lazyfs.core.errors import AccessDeniedError
from lazyfs.core.types import Range
from lazyfs.store import keys
from tests.faults import Chooser, refusing, sample
from tests.proxy import Answer, Exchange, Fault, Proxy, Seen, proxied
from tests.servers import Server
from tests.store.test_network_faults import VERBS, scene

SPAN = Range(0, 100)


@pytest.fixture
def proxy(moto: Server) -> Iterator[Proxy]:
    with proxied(moto) as proxy:
        yield proxy


class Wallet:
    """Where the user's credentials are."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "credentials"
        self.process = directory / "process"

    def keep(self, name: str) -> None:
        """What every new look finds."""
        self.file.write_text(
            f"[default]\naws_access_key_id = {name}\naws_secret_access_key = s\naws_session_token = token-of-{name}\n"
        )
        told = {"Version": 1, "AccessKeyId": name, "SecretAccessKey": "s", "SessionToken": f"token-of-{name}"}
        self.process.write_text(json.dumps(told | {"Expiration": "2099-01-01T00:00:00Z"}))


@pytest.fixture(params=["file", "process"])
def wallet(request: pytest.FixtureRequest, aws_environment: pytest.MonkeyPatch, tmp_path: Path) -> Wallet:
    wallet = Wallet(tmp_path)
    wallet.keep("first")
    if request.param == "file":
        aws_environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(wallet.file))
    else:
        program = f"import sys; print(open({str(wallet.process)!r}).read())"
        (tmp_path / "program.py").write_text(program)
        (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {tmp_path}/program.py\n")
        aws_environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    aws_environment.setattr(keys, "_PAUSE_S", 0.0)
    return wallet


def expired(exchange: Exchange) -> None:
    """As S3 says it: the answer to a HEAD has no body."""
    if exchange.seen.method == "HEAD":
        exchange.tell(Answer(400, {}, b""))
    else:
        refusing(400, "ExpiredToken")(exchange)


def for_whom(name: str) -> Chooser:
    def fault(seen: Seen) -> Fault | None:
        return expired if seen.access_key == name else None

    return fault


@pytest.mark.parametrize("verb", sample(list(VERBS), 2, len(VERBS)))
async def test_new_credentials_are_picked_up_by_every_verb(
    verb: str, wallet: Wallet, moto: Server, proxy: Proxy
) -> None:
    async with scene(moto, proxy, deadline_s=5) as s:
        await s.store.head("k")
        assert proxy.seen[-1].access_key == "first"
        await s.store.get_range(s.oid, SPAN)
        proxy.fault = for_whom("first")
        wallet.keep("second")
        await VERBS[verb][1](s)
        assert proxy.seen[-1].access_key == "second"


@pytest.mark.parametrize("verb", sample(["get", "head", "list", "put", "upload_part"], 1, 5))
async def test_expired_credentials_without_others_are_an_error_at_once(
    verb: str, wallet: Wallet, moto: Server, proxy: Proxy
) -> None:
    async with scene(moto, proxy, deadline_s=5) as s:
        proxy.fault = for_whom("first")
        before = len(proxy.seen)
        with pytest.raises(AccessDeniedError):
            await VERBS[verb][1](s)
        assert len(proxy.seen) == before + 1
        wallet.keep("second")
        await s.store.head("k")


async def test_many_who_find_them_expired_cause_one_look(wallet: Wallet, moto: Server, proxy: Proxy) -> None:
    async with scene(moto, proxy, deadline_s=5) as s:
        proxy.fault = for_whom("first")
        wallet.keep("second")
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(s.store.head, "k")
                nursery.start_soon(s.store.get_range, s.oid, SPAN)
        assert s.store._inner.credentials_version == 1
