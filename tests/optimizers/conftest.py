"""Runs the optimizer as its users do: a child process with a request on its standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.layout import Layout
from artifacts.manifest import Manifest
from artifacts.protocol import BuildEvent, PlannedVariant, PlanResponse, build_event
from artifacts.store import Store
from optimizers.sources import fetch
from optimizers.spec import parse_chain
from optimizers.stage import Outcome, Work

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Child:
    """The optimizer program, working on one store."""

    store: Path
    root: Path = ROOT
    environment: Mapping[str, str] = field(default_factory=lambda: ENVIRONMENT)

    def plan(self, model: str, variants: Mapping[str, Any], **more: Any) -> PlanResponse:
        """Ask for recipes."""
        request = {"model": model, "variants": variants, "store": str(self.store), **more}
        done = subprocess.run(
            [sys.executable, "-m", "optimizers", "plan"],
            input=json.dumps(request).encode(),
            capture_output=True,
            env=dict(self.environment),
            cwd=self.root,
            check=False,
        )
        assert done.stdout, done.stderr.decode()
        return PlanResponse.model_validate_json(done.stdout)

    def start(self, model: str, planned: PlannedVariant, **more: Any) -> subprocess.Popen[bytes]:
        """Start a build; its standard input stays open."""
        request = {
            "model": model,
            "variant": "tested",
            "chain": planned.chain,
            "recipe": planned.recipe,
            "store": str(self.store),
            "threads": 2,
            **more,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "optimizers", "build"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(self.environment),
            cwd=self.root,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        return process

    def build(self, model: str, planned: PlannedVariant, **more: Any) -> list[BuildEvent]:
        """Build to the end and give all events."""
        return finish(self.start(model, planned, **more))


def finish(process: subprocess.Popen[bytes]) -> list[BuildEvent]:
    """Read a build's events to the end."""
    assert process.stdout is not None
    assert process.stdin is not None
    events = [build_event.validate_json(line) for line in process.stdout]
    process.wait()
    process.stdin.close()
    process.stdout.close()
    return events


@dataclass(frozen=True)
class BuiltVariants:
    """A store with several variants of one model."""

    model: str
    store: Store
    child: Child
    plan: PlanResponse
    events: Mapping[str, list[BuildEvent]]

    def manifest(self, variant: str) -> Manifest:
        """What the store says about a variant."""
        artifact = self.store.find(self.plan.variants[variant].recipe)
        assert artifact is not None
        return self.store.manifest(artifact)


def windows(count: int = 16, length: int = 24) -> tuple[NDArray[np.int64], ...]:
    """Give a text to calibrate on: random bytes, the same whenever asked."""
    return tuple(np.random.default_rng(7).integers(0, 256, (count, length)))


def apply_stage(folder: Path, target: Path, item: Mapping[str, Any]) -> tuple[Outcome, Any]:
    """Apply one stage of the torch form to a folder, as a build would.

    Args:
        folder: A Hugging Face folder.
        target: Where the result goes; made here.
        item: The stage as a chain has it.

    Returns:
        What the stage said, and the module that it wrote.
    """
    from optimizers.torch_models import load_module

    target.mkdir()
    layout = Layout(target / "no-store")
    source = fetch(str(folder), None, layout=layout, offline=True, report=lambda *_: None)

    def nobody(*_: object) -> Any:
        pytest.fail("the stage needs no other model")

    chain = parse_chain("chain", [item])
    assert not chain.errors, chain.errors
    (stage,) = chain.stages

    def calibration(_: object) -> Any:
        return windows() if stage.calibrates else pytest.fail("the stage reads no text")

    outcome = stage.apply(Work(folder, None, source, nobody, calibration), target, lambda *_: None)
    return outcome, load_module(target)


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a random GPT-2, whose linear layers are Conv1D and transposed."""
    from benchmarks import zoo

    return zoo.write_model(tmp_path_factory.mktemp("models") / "tiny-gpt2", "gpt2")


VARIANTS: dict[str, Any] = {
    "baseline": [],
    "int4": [{"quantize": {"method": "weight_only"}}],
    "int8": [{"quantize": {"method": "dynamic"}}],
    "lean": [
        {"prune": {"amount": 0.5}},
        {"quantize": {"method": "weight_only", "algorithm": "k_quant"}},
    ],
}


@pytest.fixture
def child(tmp_path: Path) -> Child:
    """Give the optimizer with a store of its own."""
    return Child(tmp_path / "store")


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file of a dozen documents."""
    path = tmp_path_factory.mktemp("texts") / "heldout.jsonl"
    source = Path(__file__).read_text(encoding="utf-8")
    parts = [source[start : start + 600] for start in range(0, 3600, 300)]
    path.write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))
    return path


@pytest.fixture(scope="session")
def built(
    tiny_llama_folder: Path, evaluation: Path, tmp_path_factory: pytest.TempPathFactory
) -> BuiltVariants:
    """Give the tiny Llama built in four variants by real children; read-only."""
    child = Child(tmp_path_factory.mktemp("built") / "store")
    plan = child.plan(str(tiny_llama_folder), VARIANTS)
    assert not plan.errors
    events = {
        name: child.build(str(tiny_llama_folder), planned, evaluation={"text": str(evaluation)})
        for name, planned in plan.variants.items()
    }
    return BuiltVariants(str(tiny_llama_folder), Store(child.store), child, plan, events)
