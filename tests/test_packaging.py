"""What is installed: pins that fit what is asked for, and the files that a start needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pairs}


INSTALLED = [*PROJECT["dependencies"]]
for name in ("optimizer", "compare", "search", "dev"):
    INSTALLED += [one for one in EXTRAS[name] if not one.startswith(f"{PROJECT['name']}[")]


@pytest.mark.parametrize("requirement", INSTALLED)
def test_every_requirement_has_a_pin_that_fits(requirement: str) -> None:
    """A set-up resolves, and next year's is the same as today's."""
    wanted = Requirement(requirement)
    version = pins().get(wanted.name.lower().replace("_", "-"))
    assert version is not None, f"constraints.txt has no {wanted.name}"
    assert wanted.specifier.contains(version)


def test_pins_name_no_local_build() -> None:
    """``torch==2.13.0`` also allows the CPU build; ``+cpu`` would forbid the other."""
    assert not [version for version in pins().values() if "+" in version]


@pytest.mark.parametrize("target", ["setup", "serve", "test", "check", "test-system", "image"])
def test_documented_targets_exist(target: str) -> None:
    """README, CONTRIBUTING and CI call them."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)


def test_what_serving_the_demo_reads_is_package_data() -> None:
    """``serve`` without a config works from an installed wheel as well."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = tool["setuptools"]["package-data"]["demo"]
    needed = ["config.yaml", "heldout.jsonl", "model/model.safetensors", "model/tokenizer.json"]
    for name in needed:
        path = ROOT / "demo" / name
        assert path.is_file()
        assert any(path in (ROOT / "demo").glob(pattern) for pattern in patterns), name
