"""A stand-in for S3 that only lists: a million keys, held as ready-made XML, answered after a set delay.

No server here holds a million objects quickly. Run it as a process of its own:
``python -m bench.list_server --keys 1000000 --latency-ms 50``; it prints its port.
Keys are `train/n00000/n00000_0000.jpg`, a thousand to a directory, or with --flat all in one.
"""

from __future__ import annotations

import argparse
import asyncio
from bisect import bisect_right
from urllib.parse import parse_qs, urlsplit

SIZE = 114_660
HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>bench</Name><EncodingType>url</EncodingType><MaxKeys>1000</MaxKeys>"
)


def make_keys(count: int, *, flat: bool) -> list[str]:
    """The keys, in order."""
    if flat:
        return [f"all/img_{number:08}.jpg" for number in range(count)]
    return [f"train/n{number // 1000:05}/n{number // 1000:05}_{number % 1000:04}.jpg" for number in range(count)]


class Bucket:
    """The keys and their XML."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self.xml = [
            f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{number:032x}&quot;</ETag><Size>{SIZE}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for number, key in enumerate(keys)
        ]

    def page(self, query: dict[str, list[str]]) -> str:
        """The answer to ListObjectsV2."""
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        limit = min(int(query.get("max-keys", ["1000"])[0]), 1000)
        first = max(bisect_right(self.keys, after), bisect_right(self.keys, prefix) if prefix else 0)
        if prefix and first > 0 and self.keys[first - 1] == prefix and not after:
            first -= 1
        if query.get("delimiter"):
            return self._folded(prefix, first, limit)
        last = first
        end = len(self.keys) if not prefix else bisect_right(self.keys, prefix + "\U0010ffff")
        last = min(first + limit, end)
        return self._answer(self.xml[first:last], [], self.keys[last - 1] if last < end else None)

    def _folded(self, prefix: str, first: int, limit: int) -> str:
        contents: list[str] = []
        prefixes: list[str] = []
        at, last = first, ""
        while at < len(self.keys) and self.keys[at].startswith(prefix) and len(contents) + len(prefixes) < limit:
            slash = self.keys[at].find("/", len(prefix))
            if slash < 0:
                contents.append(self.xml[at])
                last = self.keys[at]
                at += 1
            else:
                prefixes.append(self.keys[at][: slash + 1])
                last = prefixes[-1] + "\U0010ffff"
                at = bisect_right(self.keys, last)
        more = at < len(self.keys) and self.keys[at].startswith(prefix)
        return self._answer(contents, prefixes, last if more else None)

    def _answer(self, contents: list[str], prefixes: list[str], token: str | None) -> str:
        folded = "".join(f"<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>" for prefix in prefixes)
        more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
        truncated = "true" if token else "false"
        return (
            f"{HEAD}<IsTruncated>{truncated}</IsTruncated>{more}<KeyCount>{len(contents) + len(prefixes)}</KeyCount>"
            f"{''.join(contents)}{folded}</ListBucketResult>"
        )


async def serve(bucket: Bucket, latency_s: float) -> None:
    """Answer on a free loopback port until killed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(latency_s)
                query = parse_qs(urlsplit(request.split(b" ", 2)[1].decode()).query, keep_blank_values=True)
                listing = request.startswith(b"GET ") and "list-type" in query
                body = bucket.page(query).encode() if listing else b""
                status = "200 OK" if listing else "403 Forbidden"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--flat", action="store_true")
    options = parser.parse_args()
    asyncio.run(serve(Bucket(make_keys(options.keys, flat=options.flat)), options.latency_ms / 1000))


if __name__ == "__main__":
    main()
