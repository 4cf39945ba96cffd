"""An installation that only serves: it plans, finds what is built, and says what it cannot do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from artifacts.protocol import BuildFailed, Built, PlannedVariant
from tests.optimizers.conftest import ENVIRONMENT, ROOT, Child

VARIANTS: dict[str, Any] = {
    "baseline": [],
    "int4": [{"quantize": {"method": "weight_only", "bits": 4}}],
}
# Of the extra `optimizer`; no installation for serving has them.
HEAVY = (
    "accelerate",
    "mobius",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "peft",
    "safetensors",
    "torch",
    "transformers",
)


@pytest.fixture
def lean(tmp_path: Path) -> Child:
    """The optimizer without its heavy libraries, on an empty store."""
    (place := tmp_path / "without").mkdir()
    lines = "".join(f"sys.modules[{name!r}] = None\n" for name in HEAVY)
    (place / "sitecustomize.py").write_text(f"import sys\n{lines}", encoding="utf-8")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{place}:{ROOT}"}
    return Child(tmp_path / "store", environment=environment)


@pytest.fixture
def planned(demo_store: Path) -> dict[str, PlannedVariant]:
    """The demo's variants, as whoever built them had them planned."""
    plan = Child(demo_store).plan("demo", VARIANTS)
    assert not plan.errors
    return plan.variants


def test_plans_are_the_same_without_the_heavy_libraries(
    lean: Child, planned: dict[str, PlannedVariant]
) -> None:
    """Its recipes find what was built elsewhere."""
    plan = lean.plan("demo", VARIANTS)
    assert not plan.errors
    recipes = {name: one.recipe for name, one in plan.variants.items()}
    assert recipes == {name: one.recipe for name, one in planned.items()}


def test_a_miss_is_refused_with_the_command_that_builds_it(
    lean: Child, planned: dict[str, PlannedVariant]
) -> None:
    """Nothing is written for it, so a store that cannot be written is told the same."""
    (failed,) = lean.build("demo", planned["int4"])
    assert isinstance(failed, BuildFailed)
    assert failed.code == "not_equipped"
    assert "'tested' is not in the store" in failed.message
    assert "no torch" in failed.message
    assert "`inference-unlimited build CONFIG`" in failed.remedy
    assert not lean.store.exists()


def test_what_is_built_is_found(
    lean: Child, planned: dict[str, PlannedVariant], demo_store: Path
) -> None:
    """By whoever cannot build it."""
    shutil.copytree(demo_store, lean.store)
    assert planned["int4"].artifact is not None
    (found,) = lean.build("demo", planned["int4"])
    assert found == Built(artifact=planned["int4"].artifact)
