"""The arrows of the house: who may import whom, who may name a library, and how long a module may grow."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "lazyfs"
MODULES = sorted(HOUSE.rglob("*.py"))

LONGEST_MODULE = 450
# Written in two halves, so that this file does not name them either.
REGISTRY_HOSTS = tuple(
    name + ending
    for name, ending in [("pypi", ".org"), ("pythonhosted", ".org"), ("registry", ".npmjs"), ("deb.debian", ".org")]
)


def imported(path: Path) -> Iterator[str]:
    """The absolute names that a module imports anywhere, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module or ""


def files() -> Iterator[Path]:
    """Every file that people wrote here: no environments, caches or build results."""
    for folder, children, names in os.walk(ROOT):
        children[:] = [
            name
            for name in children
            if (name == ".ci" or not name.startswith(".")) and name not in {"__pycache__", "build", "dist"}
            if not (Path(folder, name) / "pyvenv.cfg").exists()
        ]
        yield from (Path(folder, name) for name in names)


def test_import_contracts_hold() -> None:
    # A process of its own: import-linter configures logging, and so silences the loggers of the tests that follow.
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode()


def test_the_core_imports_the_standard_library_and_itself_only() -> None:
    strangers = {
        f"{path.name}: {name}"
        for path in sorted((HOUSE / "core").rglob("*.py"))
        for name in imported(path)
        if not name.startswith("lazyfs.core") and name.split(".")[0] not in sys.stdlib_module_names
    }
    assert strangers == set()


def test_a_module_stays_within_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_no_file_names_a_package_registry() -> None:
    naming = [str(path) for path in files() if any(host.encode() in path.read_bytes() for host in REGISTRY_HOSTS)]
    assert naming == []
