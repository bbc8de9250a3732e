"""The workshop's own tools: the scripts, the lock, and the compose file that no Docker engine here can run."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import lazyfs

ROOT = Path(__file__).parent.parent
SCRIPTS = [*sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run"]
LOCK = (ROOT / "requirements-dev.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def normal(requirement: str) -> str:
    """The distribution's name of a requirement, spelled as the lock spells it."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_bash_of_a_page(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert os.access(script, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    assert len(lines) <= 60
    subprocess.run(["bash", "-n", script], check=True)


def test_ci_runs_the_scripts_that_people_run() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert "scripts/lint" in text
    assert "scripts/test" in text


def test_the_lock_pins_every_requirement_with_hashes_and_no_index() -> None:
    pins = re.findall(r"^([\w-]+)==\S+ .*\\\n    --hash=sha256:", LOCK, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^\S+==", LOCK, re.MULTILINE))
    assert "://" not in LOCK
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"], *groups["dev"]]
    assert {normal(requirement) for requirement in wanted} <= set(pins)


def test_the_version_is_told_once() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert metadata.version("lazyfs") == lazyfs.__version__


def test_compose_runs_the_suite_against_minio() -> None:
    minio, test = COMPOSE["services"]["minio"], COMPOSE["services"]["test"]
    assert "scripts/test" in test["command"]
    assert test["environment"]["LAZYFS_TEST_ENDPOINT"] == "http://minio:9000"
    assert test["environment"]["AWS_ACCESS_KEY_ID"] == minio["environment"]["MINIO_ROOT_USER"]
    assert test["environment"]["AWS_SECRET_ACCESS_KEY"] == minio["environment"]["MINIO_ROOT_PASSWORD"]
    assert "minio" in test["depends_on"]


def test_compose_lets_the_container_mount() -> None:
    test = COMPOSE["services"]["test"]
    assert test["devices"] == ["/dev/fuse"]
    assert test["cap_add"] == ["SYS_ADMIN"]
    assert test["security_opt"] == ["apparmor:unconfined"]
