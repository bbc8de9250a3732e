from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the developer's home is read or written."""
    for name, folder in {"CONFIG": "config", "CACHE": "cache", "STATE": "state"}.items():
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / folder))
    monkeypatch.setenv("LAZYFS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LAZYFS_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def mountpoint(home: Path) -> Path:
    path = home / "mnt"
    path.mkdir()
    return path


@pytest.fixture
def lazyfs(home: Path) -> Run:
    """Run `lazyfs ARGUMENTS` in a process of its own; `before` is Python that runs first, to put fakes in place."""

    def run(*arguments: str | Path, before: str = "", timeout: float = 30) -> subprocess.CompletedProcess[str]:
        code = f"{before}\nfrom lazyfs.cli.main import main\nmain()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    return run
