"""Students: which layers they have, and that these are the teacher's before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optimizers.blocks import decoder_blocks
from optimizers.distillation.distilling import Distilling
from optimizers.errors import StageError
from optimizers.spec import parse_chain
from optimizers.stage import Outcome
from optimizers.stages.student import evenly
from optimizers.torch_models import load_module, save_module
from tests.optimizers.distillation.conftest import LAYERS, Bench, make_bench


def _untrained(self: Distilling, make: Any, work: Any, target: Path, report: Any) -> Outcome:
    """Stand in for training that changes nothing."""
    del self, report
    save_module(make(), work.folder, target)
    return Outcome(notes=("not trained",))


@pytest.mark.parametrize(
    ("count", "wanted", "layers"),
    [(6, 2, [0, 5]), (6, 3, [0, 2, 5]), (12, 6, [0, 2, 4, 7, 9, 11]), (4, 3, [0, 2, 3])],
)
def test_layers_lie_evenly_between_the_first_and_the_last(
    count: int, wanted: int, layers: list[int]
) -> None:
    assert evenly(count, wanted) == layers


def test_never_is_a_layer_copied_twice() -> None:
    """However many there are."""
    for count in range(3, 60):
        for wanted in range(2, count):
            layers = evenly(count, wanted)
            assert layers == sorted(set(layers))
            assert (len(layers), layers[0], layers[-1]) == (wanted, 0, count - 1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma3"])
def test_a_student_is_the_teacher_s_layers_and_all_around_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied exactly, for every architecture."""
    monkeypatch.setattr(Distilling, "distil", _untrained)
    bench = make_bench(tmp_path, name)
    chain = [{"distill": {"method": "student", "layers": [0, 3]}}]
    outcome = bench.apply(chain, bench.original.folder, tmp_path / "student")
    assert outcome.notes == (f"made of layers 0, 3 of {LAYERS}", "not trained")
    teacher, student = load_module(bench.original.folder), load_module(tmp_path / "student")
    assert student.config.get_text_config().num_hidden_layers == 2
    was, now = teacher.state_dict(), student.state_dict()
    blocks = next(key for key, part in teacher.named_modules() if part is decoder_blocks(teacher))
    pairs = {f"{blocks}.0.": f"{blocks}.0.", f"{blocks}.1.": f"{blocks}.3."}
    for key, weight in now.items():
        source = next((key.replace(a, b, 1) for a, b in pairs.items() if key.startswith(a)), key)
        assert torch.equal(weight, was[source]), key


def test_training_brings_a_student_nearer(bench: Bench, tmp_path: Path) -> None:
    """And its zeros and layers are told."""
    fields = {"tokens": 3_000, "batch_size": 4, "learning_rate": 3e-3, "layers": 2}
    chain: list[dict[str, Any]] = [{"distill": {"method": "student", **fields}}]
    outcome = bench.apply(chain, bench.original.folder, tmp_path / "student")
    module = load_module(tmp_path / "student")
    assert len(decoder_blocks(module)) == 2
    assert outcome.parameters == module.num_parameters()
    assert outcome.zeros is None
    assert outcome.notes[0] == f"made of layers 0, 3 of {LAYERS}"
    assert "left as it was" not in outcome.notes[1]


@pytest.mark.parametrize("layers", [LAYERS, [0, LAYERS], list(range(LAYERS))])
def test_impossible_students_are_refused(layers: Any, bench: Bench, tmp_path: Path) -> None:
    """With how many layers there are, before anything is trained."""
    chain = [{"distill": {"method": "student", "layers": layers}}]
    with pytest.raises(StageError, match=f"{LAYERS} layers") as refused:
        bench.apply(chain, bench.original.folder, tmp_path / "student")
    assert refused.value.path == "layers"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"layers": 1}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": [2, 1]}, "layers"),
        ({"layers": [1, 1]}, "layers"),
        ({"layers": [-1, 2]}, "layers"),
        ({}, "layers"),
        ({"layers": 2, "learning_rate": 0}, "learning_rate"),
        ({"layers": 2, "tokens": 10}, "tokens"),
        ({"layers": 2, "minutes": 0}, "minutes"),
        ({"layers": 2, "temperature": 0}, "temperature"),
        ({"layers": 2, "on_policy": 1.5}, "on_policy"),
        ({"layers": 2, "weights": "half"}, "weights"),
        ({"layers": 2, "text": "heldout"}, "text"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(fields: dict[str, Any], path: str) -> None:
    """The plan names the field."""
    errors = parse_chain("chain", [{"distill": {"method": "student", **fields}}]).errors
    assert errors
    assert all(error.path.startswith(f"chain[0].distill.{path}") for error in errors)
    assert all(error.remedy for error in errors)
