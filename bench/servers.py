"""The S3 server of a run: the juicefs gateway, seen direct and shaped, or any endpoint that the user names.

Shaped is nginx with lua in front of the gateway: 25 ms to the first byte and 90 MB/s per connection, which is what S3
feels like from a machine in its region. Its access log is the independent count of requests and bytes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from obstore.store import S3Store

from lazyfs.cli.demo import witness
from lazyfs.cli.gateway import REGION, free_port, running_gateway, running_server

FIRST_BYTE_MS = 25
PER_CONNECTION_MB = 90
MODULES = [Path("/usr/lib/nginx/modules") / name for name in ("ndk_http_module.so", "ngx_http_lua_module.so")]

NGINX = """
{modules}
daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log warn; {user}
events {{ worker_connections 4096; }}
http {{
  log_format count '$request_method $status $body_bytes_sent $request_length $request_uri';
  access_log {dir}/access.log count;
  client_max_body_size 0; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  upstream gateway {{ server {upstream}; keepalive 256; }}
  keepalive_requests 1000000; keepalive_timeout 300s;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      access_by_lua_block {{ ngx.sleep({first_byte_s}) }}
      limit_rate {rate}m;
      proxy_pass http://gateway; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $http_host; proxy_request_buffering off; proxy_max_temp_file_size 0;
      proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_read_timeout 600s;
    }}
  }}
}}
"""


@dataclass(slots=True)
class Endpoint:
    """Where the arms find the bucket. `log` is the access log that counts their requests, if there is one."""

    name: str
    url: str
    environment: dict[str, str] = field(repr=False)
    log: Path | None = None
    _seen: Counter[str] = field(default_factory=Counter)
    _read: int = 0
    """Bytes of the log that are counted in `_seen`."""

    def traffic(self) -> Counter[str]:
        """Requests by method (`GET`, `LIST`, …) and `bytes` of answers so far."""
        if self.log is not None:
            with self.log.open("rb") as log:
                log.seek(self._read)
                for line in log:
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    self._read += len(line)
                    method, _, sent, _, uri = line.decode(errors="replace").split(" ", 4)
                    self._seen["LIST" if "list-type" in uri else method] += 1
                    self._seen["bytes"] += int(sent)
        return self._seen.copy()


@contextlib.contextmanager
def endpoints(scratch: Path, names: list[str], url: str | None, buckets: list[str]) -> Iterator[list[Endpoint]]:
    """The endpoints that a run asks for, by name, with empty `buckets`.

    `url` is the user's own: its credentials are in the environment, and it has its bucket.
    """
    if url is not None:
        yield [Endpoint("given", url, {"AWS_DEFAULT_REGION": REGION, **_user_environment()})]
        return
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(running_gateway(_fresh(scratch / "gateway")))
        for bucket in buckets:
            witness(gateway).make_bucket(bucket)
        direct = Endpoint("direct", gateway.endpoint_url, gateway.environment())
        found = [direct]
        if "shaped" in names:
            found.append(stack.enter_context(shaped(direct, _fresh(scratch / "nginx"))))
        yield found


@contextlib.contextmanager
def shaped(direct: Endpoint, directory: Path) -> Iterator[Endpoint]:
    """`direct` with the latency and the bandwidth of S3, until the block ends."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    if not (Path(nginx).exists() and all(module.exists() for module in MODULES)):
        raise SystemExit("bench: the shaped endpoint needs nginx and libnginx-mod-http-lua; or --endpoints direct")
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(
        NGINX.format(
            modules="\n".join(f"load_module {module};" for module in MODULES),
            user="user root;" if os.geteuid() == 0 else "",
            dir=directory,
            upstream=direct.url.removeprefix("http://"),
            port=port,
            first_byte_s=FIRST_BYTE_MS / 1000,
            rate=PER_CONNECTION_MB,
        )
    )
    log = directory / "access.log"
    command = (nginx, "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(config))
    with running_server(command, port, os.environ, directory):
        yield Endpoint("shaped", f"http://127.0.0.1:{port}", direct.environment, log)


def raw_client(endpoint: Endpoint, bucket: str) -> S3Store:
    """obstore, as anybody would use it."""
    user = endpoint.environment
    return S3Store(
        bucket,
        endpoint=endpoint.url,
        access_key_id=user["AWS_ACCESS_KEY_ID"],
        secret_access_key=user["AWS_SECRET_ACCESS_KEY"],
        region=user["AWS_DEFAULT_REGION"],
        client_options={"allow_http": True},
    )


def _fresh(directory: Path) -> Path:
    directory.mkdir(parents=True, mode=0o700)
    return directory


def _user_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith("AWS_")}


def version_of(*command: str) -> str | None:
    """The first line that a program says of its version; None if it is not there."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return next(iter((done.stdout + done.stderr).strip().splitlines()), "?")
