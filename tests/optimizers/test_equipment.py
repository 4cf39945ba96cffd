"""An installation that only serves: it plans, finds what is built, and says what it cannot do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from artifacts.protocol import BuildFailed, Built
from tests.optimizers.conftest import ENVIRONMENT, ROOT, Child

if TYPE_CHECKING:
    from tests.optimizers.conftest import BuiltVariants

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


def test_plans_are_the_same_without_the_heavy_libraries(lean: Child, built: BuiltVariants) -> None:
    """Its recipes find what was built elsewhere."""
    chains = {name: list(planned.chain) for name, planned in built.plan.variants.items()}
    plan = lean.plan(built.model, chains)
    assert not plan.errors
    recipes = {name: planned.recipe for name, planned in plan.variants.items()}
    assert recipes == {name: planned.recipe for name, planned in built.plan.variants.items()}


def test_a_miss_is_refused_with_the_command_that_builds_it(
    lean: Child, built: BuiltVariants
) -> None:
    """Nothing is written for it, so a store that cannot be written is told the same."""
    planned = built.plan.variants["int4"]
    shutil.rmtree(lean.store, ignore_errors=True)
    (failed,) = lean.build(built.model, planned)
    assert isinstance(failed, BuildFailed)
    assert failed.code == "not_equipped"
    assert "'tested' is not in the store" in failed.message
    assert "no torch" in failed.message
    assert "`inference-unlimited build CONFIG`" in failed.remedy
    assert not lean.store.exists()


def test_what_is_built_is_found(lean: Child, built: BuiltVariants) -> None:
    """By whoever cannot build it."""
    shutil.copytree(built.store.root, lean.store)
    planned = built.plan.variants["int4"]
    (found,) = lean.build(built.model, planned)
    assert found == Built(artifact=str(built.store.find(planned.recipe)))
