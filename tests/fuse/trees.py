"""Trees of files: made in a bucket by the independent client, and compared with what a program sees."""

from __future__ import annotations

import io
import os
from pathlib import Path
from random import Random

from minio import Minio

from tests.servers import Server

ODD_NAMES = [
    "plain.txt",
    "with space",
    " leading and trailing ",
    "100%25 of %2F",
    "a+b=c&d;e?f#g",
    "back\\slash",
    'it\'s "quoted" `here`',
    "emoji 🚀 and combining e\u0301 beside é",
    "日本語",
    "*?[glob]{x}",
    "-rf",
    "~",
    "...",
    "$HOME;`id`",
    "<&>",
    ":colon|pipe",
    "x" * 255,
    "é" * 127,
    "deep/" * 40 + "bottom",
    "dir.with.dots/and space/x",
    "\u200bzero\u202ewidth",
]
CONTROL_NAMES = ["new\nline", "tab\tbed", "car\rriage", "bell\x07", "del\x7f"]
"""For servers without the limit `control-keys`."""


def random_bytes(size: int, seed: int = 1) -> bytes:
    """`size` bytes that are the same every time and not compressible."""
    return Random(seed).randbytes(size)


def put(client: Minio, bucket: str, key: str, data: bytes) -> str:
    """Store an object; its ETag."""
    etag = client.put_object(bucket, key, io.BytesIO(data), len(data), part_size=64 * 1024**2).etag
    assert etag is not None
    return etag


def said(client: Minio, bucket: str, key: str) -> dict[str, str]:
    """The user metadata of an object."""
    headers = client.stat_object(bucket, key).metadata
    assert headers is not None
    prefix = "x-amz-meta-"
    return {name.lower()[len(prefix) :]: value for name, value in headers.items() if name.lower().startswith(prefix)}


def get(client: Minio, bucket: str, key: str) -> bytes:
    """An object's content."""
    answer = client.get_object(bucket, key)
    try:
        return answer.read()
    finally:
        answer.close()
        answer.release_conn()


def keys(client: Minio, bucket: str, prefix: str = "") -> list[str]:
    """All keys, sorted by bytes."""
    found = [item.object_name or "" for item in client.list_objects(bucket, prefix, recursive=True)]
    return sorted(found, key=str.encode)


def odd_tree(server: Server) -> dict[str, bytes]:
    """Objects by key: odd names, sizes around the limits of blocks and requests, empty files and markers."""
    names = ODD_NAMES + ([] if "control-keys" in server.limits else CONTROL_NAMES)
    objects = {f"names/{name}": name.encode() * 3 for name in names}
    sizes = [0, 1, 4095, 4096, 4097, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 1024**2 + 1, 3_000_001]
    objects |= {f"sizes/{size}.bin": random_bytes(size, size) for size in sizes}
    objects |= {"markers/": b"", "markers/empty/": b"", "markers/full/": b"", "markers/full/file": b"inside"}
    if "file-and-directory" not in server.limits:
        objects |= {"both": b"hidden by the directory", "both/a": b"a", "both/a/b": b"b"}
    return objects


def visible(objects: dict[str, bytes]) -> tuple[dict[str, bytes], set[str]]:
    """(files by path, directories) that a mount must show for `objects`: where both exist, the directory wins."""
    folders = {key[:cut] for key in objects for cut, letter in enumerate(key) if letter == "/"}
    return {key: data for key, data in objects.items() if not key.endswith("/") and key not in folders}, folders


def read_tree(root: Path) -> tuple[dict[str, bytes], set[str]]:
    """(files by path, directories) below `root`, all read."""
    files, folders = {}, set()
    for folder, names, children in os.walk(root):
        base = Path(folder)
        folders |= {str((base / name).relative_to(root)) for name in names}
        files |= {str((base / name).relative_to(root)): (base / name).read_bytes() for name in children}
    return files, folders
