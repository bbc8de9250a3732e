"""Real Redis servers on free loopback ports, each a subprocess that is ended by its own process id.

Debian's package `redis-tools` is enough: its redis-check-rdb is the server's binary, which looks at what it is called.
So no test machine gets a service that starts by itself.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lazyfs.cli.gateway import free_port

START_S = 10.0


class Redis:
    """A server that can be stopped and started again on its port, empty each time."""

    def __init__(self, directory: Path, *options: str, password: str | None = None, tls: Path | None = None) -> None:
        self.port = free_port()
        self.password = password
        self.tls = tls
        self._directory = directory
        self._options = [*options, *(["--requirepass", password] if password else [])]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        port = ["--port", str(self.port)]
        if self.tls is not None:
            pem = str(self.tls)
            port = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            port += ["--tls-cert-file", pem, "--tls-key-file", pem, "--tls-ca-cert-file", pem]
        self._directory.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            ["redis-server", *port, "--bind", "127.0.0.1", "--save", "", "--dir", str(self._directory), *self._options],
            executable=_binary(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        with self.client() as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                assert self._process.poll() is None, "redis-server ended"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.02)

    def stop(self) -> None:
        """kill -9, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """It listens, and never answers again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    @property
    def url(self) -> str:
        """Where it is, without the password."""
        if self.tls is not None:
            return f"rediss://127.0.0.1:{self.port}/0?ssl_ca_certs={self.tls}"
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        """The independent witness."""
        options: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(self.tls)} if self.tls is not None else {}
        return redis.Redis(port=self.port, host="127.0.0.1", password=self.password, **options)

    def calls(self, command: str) -> int:
        """How often the server was given this command."""
        with self.client() as client:
            return int(client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


@contextlib.contextmanager
def running_redis(directory: Path, *options: str, **how: Any) -> Iterator[Redis]:
    """A server until the block ends. Skips the test where Redis is not installed."""
    server = Redis(directory, *options, **how)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def running_cluster(directory: Path, nodes: int = 3) -> Iterator[list[Redis]]:
    """A cluster of masters until the block ends."""
    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(nodes):
            while True:  # the bus listens 10,000 above, and there must be such a port
                server = Redis(directory / str(number), "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
                if server.port <= 55_000:
                    break
            stack.callback(server.stop)
            server.start()
            servers.append(server)
        command = ["redis-cli", "--cluster", "create", *(f"127.0.0.1:{server.port}" for server in servers)]
        subprocess.run([*command, "--cluster-replicas", "0", "--cluster-yes"], check=True, capture_output=True)
        deadline = time.monotonic() + START_S
        for server in servers:
            with server.client() as client:
                while client.cluster("info")["cluster_state"] != "ok":
                    assert time.monotonic() < deadline, "the cluster does not form"
                    time.sleep(0.05)
        yield servers


def make_certificate(path: Path, *, ca: bool = True) -> Path:
    """A key and the certificate of 127.0.0.1 that it signs itself, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lazyfs test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def _binary() -> str:
    found = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    if found is None:
        pytest.skip("Redis is not installed: apt-get install redis-tools")
    return found
