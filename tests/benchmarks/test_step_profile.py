"""The profile of a step: kernels are added up by what they are, of the steps that count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artifacts.manifest import GraphSpec
from benchmarks import step_profile
from benchmarks.bandwidth import bytes_per_token
from benchmarks.step_profile import Work, digest, profile
from tests.optimizers.onnx_stage import run_stage


def _run(begins: int, lasts: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": begins, "dur": lasts}


def _kernel(name: str, operator: str, begins: int, lasts: int) -> dict[str, Any]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "args": {"op_name": operator},
        "ts": begins,
        "dur": lasts,
    }


EVENTS = [
    {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9},
    _kernel("up", "MatMulNBits", 10, 80),  # of the warm-up
    _run(10, 90),
    _kernel("up", "MatMulNBits", 100, 30),
    _kernel("down", "MatMulNBits", 130, 10),
    _kernel("act", "Mul", 140, 5),
    _run(100, 50),
    _kernel("up", "MatMulNBits", 200, 50),
    _kernel("down", "MatMulNBits", 250, 10),
    _kernel("act", "Mul", 260, 5),
    _run(200, 70),
]
WEIGHTS = {"up": ("4 x 8", 16), "down": ("8 x 4", 16)}


def test_kernels_of_the_steps_that_count_are_added_up() -> None:
    found = digest(EVENTS, WEIGHTS, steps=2)
    assert found.seconds == pytest.approx(60e-6)
    assert [(part.title, part.calls, part.weight_bytes) for part in found.parts] == [
        ("MatMulNBits 4 x 8", 1, 16),
        ("MatMulNBits 8 x 4", 1, 16),
        ("Mul", 1, 0),
    ]
    assert [part.seconds for part in found.parts] == pytest.approx([40e-6, 10e-6, 5e-6])


def test_products_of_one_shape_are_one_part() -> None:
    found = digest(EVENTS, dict.fromkeys(WEIGHTS, ("8 x 8", 16)), steps=1)
    assert [(part.title, part.calls, part.weight_bytes) for part in found.parts] == [
        ("MatMulNBits 8 x 8", 2, 32),
        ("Mul", 1, 0),
    ]


def test_a_step_has_a_row_per_stream_and_wants_its_last_logits() -> None:
    rows = Work(streams=3, tokens=2, context=5).rows()
    assert [(row.slot, row.start, len(row.tokens), row.logits) for row in rows] == [
        (0, 5, 2, 1),
        (1, 5, 2, 1),
        (2, 5, 2, 1),
    ]


def test_an_artifact_that_is_not_there_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert step_profile.main([str(tmp_path), "abc"]) == 2
    assert "0 artifacts" in capsys.readouterr().out


def test_the_products_of_a_real_step_are_those_of_the_graph(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """ONNX Runtime's names of nodes lead to their weights, quantized or not."""
    model, spec = tiny_llama_export
    run_stage({"method": "weight_only", "block_size": 32}, *tiny_llama_export, tmp_path)
    for path in (model, tmp_path / "model.onnx"):
        work = Work(streams=2, tokens=1, context=3)
        found = profile(path, spec, work, threads=1, steps=2)
        assert sum(part.weight_bytes for part in found.parts) == bytes_per_token(path)
        assert 0 < sum(part.seconds for part in found.parts) < found.seconds
