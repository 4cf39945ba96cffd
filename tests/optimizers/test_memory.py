"""Builds that cannot fit into memory are refused before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from artifacts.protocol import BuildFailed, Built, StageBegun, build_event
from benchmarks import zoo
from optimizers.errors import MemoryLimitError
from optimizers.memory import (
    check_memory,
    check_streamed_memory,
    estimated_bytes,
    streamed_bytes,
)
from optimizers.model_folder import weights_files
from optimizers.spec import parse_chain
from optimizers.stage import Stage
from optimizers.torch_models import load_module
from optimizers.weights_file import count_parameters
from tests.optimizers.conftest import ENVIRONMENT, Child, finish

CHAIN = [{"prune": {"amount": 0.5}}, {"quantize": {"method": "weight_only"}}]
MIB = 1 << 20


def _machine(root: Path, available: int) -> Path:
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemAvailable: {available // 1024} kB\n")
    return root


def _stages(*items: dict[str, Any]) -> tuple[Stage, ...]:
    return parse_chain("chain", items).stages


def test_headers_tell_how_many_parameters_there_are(tmp_path: Path) -> None:
    """Of all shards, without reading a weight."""
    folder = zoo.write_model(tmp_path / "whole", "llama")
    module = load_module(folder)
    (path,) = weights_files(folder)
    assert count_parameters(path) == module.num_parameters()
    module.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    parts = weights_files(tmp_path / "parts")
    assert len(parts) > 1
    assert sum(map(count_parameters, parts)) == module.num_parameters()


def test_an_estimate_grows_with_the_weights_and_with_what_a_stage_holds(tmp_path: Path) -> None:
    """The costliest step alone counts, since each gives back what it held."""
    small = zoo.write_model(tmp_path / "small", "llama")
    large = zoo.write_model(tmp_path / "large", "llama", hidden_size=512, intermediate_size=1536)
    more = sum(map(count_parameters, weights_files(large)))
    more -= sum(map(count_parameters, weights_files(small)))
    assert estimated_bytes(large, ()) - estimated_bytes(small, ()) >= 4 * more
    assert estimated_bytes(large, _stages(*CHAIN)) == estimated_bytes(large, ())
    globally = _stages({"prune": {"amount": 0.5, "scope": "global"}})
    assert estimated_bytes(large, globally) > estimated_bytes(large, ())


def test_what_just_fits_is_not_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    """The bound is the estimate itself."""
    stages = _stages(*CHAIN)
    needed = estimated_bytes(tiny_llama_folder, stages)
    check_memory(tiny_llama_folder, stages, "c", _machine(tmp_path / "enough", needed + 1024))
    with pytest.raises(MemoryLimitError) as refused:
        check_memory(tiny_llama_folder, stages, "c", _machine(tmp_path / "less", needed - 1024))
    assert refused.value.path == "model"
    assert f"about {needed // MIB} MiB" in str(refused.value)


def test_the_stage_that_alone_does_not_fit_is_named(tmp_path: Path) -> None:
    """Without it the build could run, so the model is not at fault."""
    folder = zoo.write_model(tmp_path / "large", "llama", hidden_size=512, intermediate_size=1536)
    stages = _stages({"prune": {"amount": 0.1}}, {"prune": {"amount": 0.5, "scope": "global"}})
    machine = _machine(tmp_path / "machine", estimated_bytes(folder, stages) - MIB)
    with pytest.raises(MemoryLimitError) as refused:
        check_memory(folder, stages, "variants.v.chain", machine)
    assert refused.value.path == "variants.v.chain[1].prune"


# What a container's limit does, from outside of the program.
PLANT = """
import pathlib
import artifacts.machine as machine

ROOT = pathlib.Path(__file__).parent / "machine"
real = machine.available_memory_bytes
machine.available_memory_bytes = lambda root=ROOT: real(ROOT)
"""


def _planted(folder: Path, available: int) -> Child:
    _machine(folder / "machine", available)
    (folder / "sitecustomize.py").write_text(PLANT, encoding="utf-8")
    path = os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]])
    return Child(folder / "store", environment={**ENVIRONMENT, "PYTHONPATH": path})


def test_a_build_is_refused_before_its_first_heavy_step(
    tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """By the program as it is, on a machine with less."""
    child, model = _planted(tmp_path, 100 * MIB), str(tiny_llama_folder)
    events = child.build(model, child.plan(model, {"v": CHAIN}).variants["v"])
    begun = [event.stage for event in events if isinstance(event, StageBegun)]
    assert isinstance(events[-1], BuildFailed)
    assert events[-1].code == "out_of_memory"
    assert events[-1].path == "model"
    assert "100 MiB are available" in events[-1].message
    assert begun == ["fetch"]


@pytest.mark.slow
def test_an_estimate_is_no_more_than_twice_what_a_build_takes(
    tiny_llama_folder: Path, evaluation: Path, tmp_path: Path
) -> None:
    """And no less than a third of it: both would make it useless. With enough, the build runs."""
    child, model = _planted(tmp_path, 64 << 30), str(tiny_llama_folder)
    planned = child.plan(model, {"v": CHAIN}).variants["v"]
    process = child.start(model, planned, evaluation={"text": str(evaluation)})
    peak = 0
    lines: list[bytes] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        peak = max([peak, *(int(x.split()[1]) for x in status if x.startswith("VmHWM"))])
    finish(process)
    assert isinstance(build_event.validate_json(lines[-1]), Built)
    estimate = estimated_bytes(tiny_llama_folder, _stages(*CHAIN))
    assert peak * 1024 / 3 < estimate < peak * 1024 * 2


def test_a_streamed_build_is_refused_by_its_largest_matrix_alone(tmp_path: Path) -> None:
    """More layers need no more memory; a machine that could not hold the export may do."""
    small = zoo.write_model(tmp_path / "small", "llama", hidden_size=512, intermediate_size=1536)
    deep = zoo.write_model(
        tmp_path / "deep", "llama", hidden_size=512, intermediate_size=1536, num_hidden_layers=6
    )
    needed = streamed_bytes(deep)
    assert needed == streamed_bytes(small) < estimated_bytes(deep, ())
    check_streamed_memory(deep, _machine(tmp_path / "enough", needed + 1024))
    with pytest.raises(MemoryLimitError) as refused:
        check_streamed_memory(deep, _machine(tmp_path / "less", needed - 1024))
    assert refused.value.path == "model"
    assert f"about {needed // MIB} MiB" in str(refused.value)
