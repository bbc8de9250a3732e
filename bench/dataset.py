"""The objects of a run, their content known byte for byte: a local copy is what every read is held against."""

from __future__ import annotations

import io
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import obstore
import pyarrow
import pyarrow.parquet
import safetensors.numpy
from obstore.store import S3Store

from lazyfs.core.units import parse_size

MIB = 1024**2
SMALL = 114_660
"""ResNet-50's record in MLPerf Storage."""
COLUMNS = 16


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the run is: `large` bytes in a big file, `small` files in a group, `names` in the flat directory."""

    large: int
    small: int
    names: int

    @classmethod
    def of(cls, factor: float) -> Scale:
        """Factor 1 is the full run; --quick is an eighth (with fewer names still: s3fs asks for each)."""
        return cls(int(parse_size("256MiB") * factor) // MIB * MIB, int(2000 * factor), int(20_000 * factor**1.5))


@dataclass(frozen=True, slots=True)
class Dataset:
    """The truth on local disk (`root`), as the bucket has it."""

    root: Path
    scale: Scale

    def files(self, directory: str) -> list[str]:
        """Paths below `directory`, relative to the root, in order."""
        return sorted(str(path.relative_to(self.root)) for path in (self.root / directory).rglob("*") if path.is_file())

    def truth(self, path: str) -> bytes:
        """What the object holds."""
        return (self.root / path).read_bytes()

    def size(self, path: str) -> int:
        """Bytes of it."""
        return (self.root / path).stat().st_size

    @classmethod
    def make(cls, root: Path, scale: Scale) -> Dataset:
        """Write the truth. The same scale gives the same bytes."""
        source = numpy.random.default_rng(7)
        half = scale.large // 2
        large = {f"stream/{name}.bin": scale.large for name in ("one", "quarter")}
        large |= {f"stream/four-{number}.bin": half for number in range(4)}
        large |= {f"random/{name}.bin": scale.large for name in ("4k", "256k", "mmap")}
        for name, size in large.items():
            _write(root / name, source.bytes(size))
        chance = random.Random(7)
        for group in ("small1", "small8", "small32"):
            for number in range(scale.small // (4 if group == "small1" else 1)):
                size = chance.randrange(SMALL // 2, SMALL * 3 // 2)
                _write(root / f"{group}/class{number % 20:02}/{number:05}.jpg", source.bytes(size))
        for number in range(scale.names):
            _write(root / f"names/{number:06}.txt", b"x")
        _write(root / "tables/table.parquet", _parquet(source, half))
        _write(root / "shards/shard.tar", _tar(source, half))
        _write(root / "models/model.safetensors", _safetensors(source, half))
        return cls(root, scale)

    def upload(self, store: S3Store) -> None:
        """Put everything into the bucket, by the raw client."""
        with ThreadPoolExecutor(32) as pool:
            for _ in pool.map(lambda path: obstore.put(store, path, self.root / path), self.files(".")):
                pass


def _write(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


def _parquet(source: Any, size: int) -> bytes:
    """A table of COLUMNS columns of doubles that do not compress."""
    rows = size // 8 // COLUMNS
    table = pyarrow.table({f"c{number}": source.random(rows) for number in range(COLUMNS)})
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, row_group_size=rows // 4 + 1, use_dictionary=False, compression="none")
    return out.getvalue()


def _tar(source: Any, size: int) -> bytes:
    """A shard as webdataset reads it: an image and its label, again and again."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(size // SMALL):
            for suffix, body in (("jpg", source.bytes(SMALL)), ("cls", b"%d" % number)):
                member = tarfile.TarInfo(f"{number:06}.{suffix}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    return out.getvalue()


def _safetensors(source: Any, size: int) -> bytes:
    shape = (1024, size // 16 // 4 // 1024)
    tensors = {f"layer{number}.weight": source.random(shape, dtype=numpy.float32) for number in range(16)}
    made: bytes = safetensors.numpy.save(tensors)
    return made
