"""Names the nodes of a finished graph that ONNX Runtime computes by a slow kernel, and why.

Owns the rules, of ONNX Runtime 1.32 on a CPU. Those of ``MatMulNBits`` were timed on x86 with AVX2,
one row through 1024 x 1024 weights: below accuracy level 4, 8 bits took 30 to 100 times as long as
at it, 2 bits 50 times and 4 bits 4 times; float zero points and ``g_idx`` 30 times. Blocks of 512,
and rows that blocks do not divide, were as fast as others and have no rule. Changes nothing, and
knows nothing of how the graph came about.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.manifest import GraphSpec, KernelFinding
from optimizers import linears

_INTEGER_PRODUCTS = {
    "MatMulNBits",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "QLinearMatMul",
}
_PER_TENSOR = {"DynamicQuantizeMatMul", "DynamicQuantizeLinear"}
_OTHER_ATTENTION = {"Attention", "MultiHeadAttention", "PagedAttention"}
_ZERO_POINTS, _G_IDX, _SINK = 3, 4, 11  # places among inputs
_FAST = 4  # accuracy level
_LARGE = 1 << 14  # elements; less is read in no time


def audit(folder: Path, graph: GraphSpec) -> tuple[KernelFinding, ...]:
    """Look at every node of ``model.onnx`` in a folder; weights are not read."""
    model = linears.load(folder)
    is_quantized = any(node.op_type in _INTEGER_PRODUCTS for node in model.graph)
    found = []
    if graph.form == "plain":
        reason = "the graph has no GroupQueryAttention; rows run one by one and copy their cache"
        found.append(KernelFinding(node="", operator="attention", rule="attention", reason=reason))
    for node in model.graph:
        for rule, reason in _rules(node, is_quantized=is_quantized):
            name = node.name or node.outputs[0].name or ""
            found.append(KernelFinding(node=name, operator=node.op_type, rule=rule, reason=reason))
    return tuple(found)


def _rules(node: Any, *, is_quantized: bool) -> Iterator[tuple[str, str]]:
    match node.op_type:
        case "MatMulNBits":
            yield from _product(node)
        case "MatMul" | "FusedMatMul" | "Gemm" if is_quantized:
            yield from _float_product(node)
        case "GroupQueryAttention":
            yield from _attention(node)
        case operator if operator in _PER_TENSOR:
            yield (
                "per_tensor",
                "one scale for all rows: a request's outlier coarsens its neighbours",
            )
        case operator if operator in _OTHER_ATTENTION:
            yield (
                "attention",
                "its cache is copied in every step; only GroupQueryAttention's is not",
            )


def _product(node: Any) -> Iterator[tuple[str, str]]:
    bits = node.attributes.get_int("bits", 4)
    level = node.attributes.get_int("accuracy_level", 0)
    if level != _FAST:
        if bits == 4:
            yield "float_activations", f"accuracy level {level} computes in float32, not in int8"
        else:
            yield (
                "no_kernel",
                f"{bits} bits at accuracy level {level}: all weights become float32 in every step",
            )
    zero_points = _input(node, _ZERO_POINTS)
    if zero_points is not None and zero_points.dtype and zero_points.dtype.is_floating_point():
        yield "float_zero_points", "zero points in float: weights are not packed for a kernel"
    if _input(node, _G_IDX) is not None:
        yield "g_idx", "groups in another order than columns: weights are not packed for a kernel"


def _float_product(node: Any) -> Iterator[tuple[str, str]]:
    linear = linears.as_linear(node)
    if linear is not None and linear.rows * linear.columns >= _LARGE:
        size = 4 * linear.rows * linear.columns
        yield "float_product", f"{size / 1e6:.1f} MB of weights are read in float32"


def _attention(node: Any) -> Iterator[tuple[str, str]]:
    has_cap = node.attributes.get_float("softcap", 0.0) != 0.0
    has_sink = _input(node, _SINK) is not None or node.attributes.get_int("smooth_softmax", 0) == 1
    if has_cap or has_sink:
        part = "a soft cap" if has_cap else "a sink"
        yield "untiled_attention", f"with {part}, all scores of a step are kept in memory"


def _input(node: Any, place: int) -> Any | None:
    return node.inputs[place] if len(node.inputs) > place else None
