"""Every rule of the audit finds what was planted for it, and none a fault in what is usual."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from artifacts.manifest import GraphSpec
from optimizers import linears
from optimizers.kernel_audit import audit
from tests.optimizers.conftest import BuiltVariants
from tests.optimizers.onnx_stage import run_stage

Plant = Callable[[Any], None]


def _first(model: Any, operator: str) -> Any:
    return next(node for node in model.graph if node.op_type == operator)


def _level(level: int, bits: int) -> Plant:
    def plant(model: Any) -> None:
        node = _first(model, "MatMulNBits")
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)
        node.attributes["bits"] = ir.AttrInt64("bits", bits)

    return plant


def _no_level(model: Any) -> None:
    """Leave the operator's default, which is no level."""
    del _first(model, "MatMulNBits").attributes["accuracy_level"]


def _float_zero_points(model: Any) -> None:
    zero_points = linears.new_weight(model, "zero_points", np.zeros((8, 2), np.float32))
    _first(model, "MatMulNBits").replace_input_with(3, zero_points)


def _order_of_columns(model: Any) -> None:
    node = _first(model, "MatMulNBits")
    node.resize_inputs(5)
    node.replace_input_with(4, linears.new_weight(model, "order", np.zeros(64, np.int32)))


def _float_product(model: Any) -> None:
    node = _first(model, "MatMulNBits")
    weight = linears.new_weight(model, "weight", np.zeros((64, 256), np.float32))
    linears.replace_node(node, [ir.node("MatMul", [node.inputs[0], weight], name=node.name)])


def _per_tensor(model: Any) -> None:
    node = _first(model, "MatMulNBits")
    inputs = [node.inputs[0], node.inputs[1], node.inputs[2]]
    new = ir.node("DynamicQuantizeMatMul", inputs, domain="com.microsoft", name=node.name)
    linears.replace_node(node, [new])


def _soft_cap(model: Any) -> None:
    node = _first(model, "GroupQueryAttention")
    node.attributes["softcap"] = ir.AttrFloat32("softcap", 30.0)


def _sink(model: Any) -> None:
    node = _first(model, "GroupQueryAttention")
    node.replace_input_with(11, linears.new_weight(model, "sink", np.zeros(4, np.float32)))


def _other_attention(model: Any) -> None:
    node = _first(model, "GroupQueryAttention")
    new = ir.node("Attention", node.inputs[:3], name=node.name, num_outputs=3)
    linears.replace_node(node, [new])


@pytest.fixture(scope="module")
def quantized(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, GraphSpec]:
    """The tiny Llama in 4 bits, head and embeddings in 8."""
    folder = tmp_path_factory.mktemp("quantized")
    run_stage({"method": "weight_only"}, *tiny_llama_export, folder)
    return folder, tiny_llama_export[1]


@pytest.mark.parametrize(
    ("plant", "rule", "told"),
    [
        (_level(1, 8), "no_kernel", "8 bits at accuracy level 1"),
        (_level(0, 2), "no_kernel", "2 bits at accuracy level 0"),
        (_level(1, 4), "float_activations", "level 1 computes in float32"),
        (_no_level, "float_activations", "level 0 computes in float32"),
        (_float_zero_points, "float_zero_points", "not packed"),
        (_order_of_columns, "g_idx", "not packed"),
        (_float_product, "float_product", "0.1 MB of weights"),
        (_per_tensor, "per_tensor", "one scale for all rows"),
        (_soft_cap, "untiled_attention", "with a soft cap"),
        (_sink, "untiled_attention", "with a sink"),
        (_other_attention, "attention", "copied in every step"),
    ],
)
def test_each_rule_finds_what_was_planted(
    quantized: tuple[Path, GraphSpec], tmp_path: Path, plant: Plant, rule: str, told: str
) -> None:
    """One node was changed, and it alone is named."""
    folder, graph = quantized
    assert audit(folder, graph) == ()
    model = linears.load(folder)
    plant(model)
    linears.save(model, tmp_path)
    (finding,) = audit(tmp_path, graph)
    assert finding.rule == rule
    assert told in finding.reason
    names = {node.name for node in linears.load(folder).graph}
    assert finding.node in names


def test_a_graph_without_a_cache_in_place_is_told(quantized: tuple[Path, GraphSpec]) -> None:
    """The exchange form is served one row at a time."""
    folder, graph = quantized
    (finding,) = audit(folder, graph.model_copy(update={"form": "plain"}))
    assert finding.rule == "attention"


def test_a_head_that_stays_in_float32_is_told(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """Also where that was asked for: the report says what it costs."""
    run_stage({"method": "weight_only", "lm_head_bits": 32}, *tiny_llama_export, tmp_path)
    (finding,) = audit(tmp_path, tiny_llama_export[1])
    assert (finding.rule, finding.operator) == ("float_product", "MatMul")


def test_what_is_built_by_default_has_no_findings(built: BuiltVariants) -> None:
    """Not the float32 model either, whose products are slow for no hidden reason."""
    for variant in built.plan.variants:
        assert built.manifest(variant).audit == ()


def test_findings_are_told_by_kind(built: BuiltVariants) -> None:
    """A line for all nodes with one reason, however many there are."""
    from artifacts.manifest import KernelFinding

    findings = tuple(
        KernelFinding(node=node, operator="MatMul", rule="r", reason=reason)
        for node, reason in (("a", "slow"), ("b", "slow"), ("c", "slower"), ("", "whole"))
    )
    manifest = built.manifest("int4").model_copy(update={"audit": findings})
    assert manifest.audit_lines == (
        "MatMul (a and 1 more): slow",
        "MatMul (c): slower",
        "MatMul: whole",
    )
