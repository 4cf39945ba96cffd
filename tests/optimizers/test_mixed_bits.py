"""Which products get 8 bits: what rounding costs each, and the best choice for a budget."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.manifest import GraphSpec
from artifacts.packed_session import PackedSession
from artifacts.session import Row
from optimizers import linears
from optimizers.block_quantization import quantize_blocks
from optimizers.errors import StageError
from optimizers.joined_products import JOIN
from optimizers.mixed_bits import Sensitivity, choose, measure
from optimizers.probe import GraphProbe
from optimizers.recipe import recipe_digest
from optimizers.spec import parse_chain
from tests.optimizers.onnx_stage import random_windows, run_stage

FIRST = 16  # position that is compared


def _pretend(matrix: np.ndarray, bits: int) -> np.ndarray:
    blocks = quantize_blocks(matrix, bits=bits, block_size=32, is_symmetric=False, algorithm="rtn")
    return blocks.restore(matrix.shape[1])


def _sensitivities(rng: np.random.Generator, sizes: np.ndarray) -> list[Sensitivity]:
    losses = np.exp(rng.uniform(-9, -3, len(sizes)))
    return [
        Sensitivity(int(size), {4: float(loss), 8: float(loss * rng.uniform(0, 1.2))})
        for size, loss in zip(sizes, losses, strict=True)
    ]


def _mean_bits(sensitivities: list[Sensitivity], bits: list[int]) -> float:
    return float(np.average(bits, weights=[one.weights for one in sensitivities]))


def _loss(sensitivities: list[Sensitivity], bits: Any) -> float:
    return sum(one.losses[chosen] for one, chosen in zip(sensitivities, bits, strict=True))


@pytest.mark.parametrize("mean_bits", [4.0, 4.3, 5.0, 6.5, 8.0])
@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all(seed: int, mean_bits: float) -> None:
    """Against every possible plan that fits the budget."""
    rng = np.random.default_rng(seed)
    found = _sensitivities(rng, 64 * rng.integers(1, 60, 9))
    bits = choose(found, mean_bits)
    assert _mean_bits(found, bits) <= mean_bits
    fitting = [
        plan for plan in product((4, 8), repeat=9) if _mean_bits(found, list(plan)) <= mean_bits
    ]
    assert _loss(found, bits) == pytest.approx(min(_loss(found, plan) for plan in fitting))


@pytest.mark.parametrize("seed", range(4))
def test_the_budget_holds_for_any_sizes(seed: int) -> None:
    """Also where they have no common divisor, so that the choice may miss the very best."""
    rng = np.random.default_rng(seed)
    found = _sensitivities(rng, rng.integers(1_000_000, 9_000_000, 40))
    bits = choose(found, 5.5)
    assert 5.3 < _mean_bits(found, bits) <= 5.5


def test_what_gains_nothing_keeps_few_bits() -> None:
    """A budget is no reason to spend it."""
    found = [Sensitivity(64, {4: 1e-3, 8: 1e-3}), Sensitivity(64, {4: 2e-3, 8: 1e-4})]
    assert choose(found, 8.0) == [4, 8]


def test_sensitivities_are_those_of_models_built_one_by_one(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """The same figures from a saved model and a session of its own for each product and bits."""
    model, graph = tiny_llama_export
    windows = random_windows(graph.vocab_size, count=3, length=48)

    def log_probs(path: Path) -> np.ndarray:
        session = PackedSession(path, graph, slots=1, max_length=48, threads=1)
        rows = [session.step([Row(0, 0, w, 48 - FIRST)]).logits.copy() for w in windows]
        logits = np.concatenate(rows).astype(np.float64)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    found = [one for one in linears.find_linears(linears.load(model.parent)) if not one.is_head]
    given = measure(GraphProbe(model.parent, graph), found, windows, _pretend, lambda _: None)
    original = log_probs(model)
    for index, sensitivity in enumerate(given):
        for bits in (4, 8):
            edited = linears.load(model.parent)
            linear = linears.find_linears(edited)[index]
            restored = _pretend(np.ascontiguousarray(linear.matrix().T), bits)
            array = restored if linear.is_transposed else restored.T
            value = linears.new_weight(edited, "rounded", np.ascontiguousarray(array))
            users = list(linear.weight.uses())
            for user, place in users:
                user.replace_input_with(place, value)
            folder = tmp_path / f"{index}-{bits}"
            folder.mkdir()
            linears.save(edited, folder)
            other = log_probs(folder / "model.onnx")
            expected = (np.exp(original) * (original - other)).sum(axis=-1).mean()
            assert sensitivity.losses[bits] == pytest.approx(expected, rel=1e-2, abs=1e-9)
    losses = np.array([list(one.losses.values()) for one in given])
    assert (losses[:, 0] > 10 * losses[:, 1]).all()  # 4 bits cost each product more than 8


def test_the_graph_is_what_the_plan_says(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """Every product has the bits that are told, and twice the same."""
    (tmp_path / "again").mkdir()
    fields = {"method": "weight_only", "bits": "mixed", "mean_bits": 5.5}
    first = run_stage(fields, *tiny_llama_export, tmp_path)
    second = run_stage(fields, *tiny_llama_export, tmp_path / "again")
    assert [one.bits for one in first.plan] == [one.bits for one in second.plan]
    nodes = [n for n in linears.load(tmp_path).graph if n.op_type == "MatMulNBits"]
    assert {one.node: (one.bits, one.accuracy_level) for one in first.plan} == {
        name: (
            node.attributes.get_int("bits"),
            node.attributes.get_int("accuracy_level"),
        )
        for node in nodes
        for name in node.name.split(JOIN)
    }
    planned = [one for one in first.plan if one.kl]
    assert {one.bits for one in planned} == {4, 8}
    assert len(planned) == len(first.plan) - 1  # all but the head, whose bits are a field
    few, many = ([one.bits for one in planned].count(bits) for bits in (4, 8))
    assert f"{few} products at 4 bits and {many} at 8" in first.notes[0]


def test_graphs_of_optimums_form_are_refused(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """They have no inputs that trials know."""
    model, graph = tiny_llama_export
    plain = graph.model_copy(update={"form": "plain"})
    fields = {"method": "weight_only", "bits": "mixed", "mean_bits": 5}
    with pytest.raises(StageError, match="layer by layer"):
        run_stage(fields, model, plain, tmp_path)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"bits": "mixed"}, "mean_bits"),
        ({"bits": 4, "mean_bits": 5}, "mean_bits"),
        ({"bits": "mixed", "mean_bits": 3.9}, "mean_bits"),
        ({"bits": "mixed", "mean_bits": 8.1}, "mean_bits"),
        ({"bits": "mixed", "mean_bits": 5, "lm_head_bits": None}, "lm_head_bits"),
        ({"bits": "mixed", "mean_bits": 5, "embedding_bits": None}, "embedding_bits"),
        ({"bits": 8, "accuracy_level": "auto"}, "accuracy_level"),
        ({"accuracy_level": 5}, "accuracy_level"),
    ],
)
def test_fields_that_do_not_agree_are_refused(fields: dict[str, Any], field: str) -> None:
    """Before anything is built, with the reachable range where it is a budget."""
    (error,) = parse_chain("chain", [{"quantize": {"method": "weight_only", **fields}}]).errors
    assert error.path.startswith(f"chain[0].quantize.{field}")
    if field == "mean_bits" and "mean_bits" in fields and fields["bits"] == "mixed":
        assert "between 4" in error.remedy


@pytest.mark.parametrize(
    ("fields", "calibrates"),
    [
        ({}, False),
        ({"bits": "mixed", "mean_bits": 5}, True),
        ({"accuracy_level": "auto"}, True),
        ({"accuracy_level": 1}, False),
    ],
)
def test_only_what_is_measured_reads_the_calibration_text(
    fields: dict[str, Any], *, calibrates: bool
) -> None:
    """A chain without measures is the same whatever the text."""
    (stage,) = parse_chain("chain", [{"quantize": {"method": "weight_only", **fields}}]).stages
    assert stage.calibrates is calibrates


def test_recipes_from_before_mixed_bits_stay_what_they_were() -> None:
    """The digest that the version before gave to the same chain; no artifact is built again."""
    fields = {"method": "weight_only", "algorithm": "k_quant"}
    digest = recipe_digest("r", parse_chain("c", [{"quantize": fields}]).stages, "c")
    assert digest == "054f391d04f4f64b35e365a285b30c7d500dd4b1bf421302b124cef2f84d1134"
    for change in ({"accuracy_level": 1}, {"bits": "mixed", "mean_bits": 5}):
        stages = parse_chain("c", [{"quantize": {**fields, **change}}]).stages
        assert recipe_digest("r", stages, "c") != digest
