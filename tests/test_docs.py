"""The documents say what the code does: every test that they name exists, every command and option too."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from lazyfs.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
DEFINED = {
    name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
}


def command(name: str) -> click.Command:
    found: click.Command = getattr(import_module(f"lazyfs.cli.{name}"), name)
    return found


def test_semantics_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/semantics.md").read_text()))
    assert len(named) > 30
    assert named <= DEFINED, sorted(named - DEFINED)


@pytest.mark.parametrize("document", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))])
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / document).parent / target).exists(), f"{document} links to {target}"
    for path in re.findall(r"`((?:lazyfs|tests|bench|scripts|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), f"{document} names {path}"


def test_options_in_the_readme_exist() -> None:
    options = set(re.findall(r"`(--[a-z][a-z-]+)", (ROOT / "README.md").read_text()))
    known = set(re.findall(r"(--[a-z][a-z-]+)", (ROOT / "docs/configuration.md").read_text()))
    assert options <= known, sorted(options - known)


def test_commands_options_and_sections_of_the_operations_guide_exist() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    known = {
        option for name in COMMANDS for param in command(name).params for option in (*param.opts, *param.secondary_opts)
    }
    options = set(re.findall(r"(?<=[ `])--[a-z][a-z-]+", text))
    assert options <= known, sorted(options - known)
    used = set(re.findall(r"^lazyfs (\w+)|[`(]lazyfs (\w+)", text, re.MULTILINE))
    assert {word for pair in used for word in pair if word} <= set(COMMANDS)
    sections = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.+)$", text, re.MULTILINE)
    }
    linked = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert linked <= sections, linked - sections
