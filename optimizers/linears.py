"""The linear layers and token embeddings of an ONNX decoder, whichever exporter wrote it.

Owns how a constant weight is recognised behind MatMul, Gemm, FusedMatMul and Transpose, what the
language model's head is, and loading and saving models with their weights aside. Knows nothing of
quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizers.errors import StageError
from optimizers.publish import MODEL
from optimizers.rows import Rows, rows_of
from optimizers.weight_files import save_graph

_PRODUCTS = {("", "MatMul"), ("", "Gemm"), ("com.microsoft", "FusedMatMul")}
_ALL_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "MatMulIntegerToFloat"}
_AFTER_HEAD = {"Add", "Mul", "Div", "Tanh", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Gather"}
_MULTIPLYING = {"MatMul", "Gemm", "FusedMatMul", "Einsum", "Conv", "MoE", "QMoE"}
_LARGE = 4096  # elements from which on a constant counts as a weight


@dataclass(frozen=True, slots=True)
class Linear:
    """One product with a constant matrix.

    Attributes:
        node: The MatMul, Gemm or FusedMatMul (an ``onnx_ir.Node``).
        weight: The initializer (an ``onnx_ir.Value``).
        is_transposed: Whether the initializer is (N, K) and not (K, N).
        rows: K, the inputs.
        columns: N, the outputs.
        is_head: Whether its output becomes the logits.
    """

    node: Any
    weight: Any
    is_transposed: bool
    rows: int
    columns: int
    is_head: bool

    @property
    def bias(self) -> Any | None:
        """What a Gemm adds, or None."""
        has_bias = self.node.op_type == "Gemm" and len(self.node.inputs) > 2
        return self.node.inputs[2] if has_bias else None

    def matrix(self) -> NDArray[np.float32]:
        """The weight as (K, N) float32."""
        weight: NDArray[np.float32] = self.weight.const_value.numpy().astype(np.float32, copy=False)
        return weight.T if self.is_transposed else weight

    def outputs(self) -> Rows:
        """The weight as (N, K), read as it is asked for."""
        return rows_of(self.weight.const_value, is_turned=not self.is_transposed)


def load(folder: Path) -> Any:
    """Read ``model.onnx``; weights stay on disk until they are asked for."""
    import onnx_ir

    return onnx_ir.load(folder / MODEL)


def save(model: Any, folder: Path, progress: Callable[[float], None] | None = None) -> None:
    """Write ``model.onnx`` and the files of its weights into a folder; embeddings have their own.

    Weights that are made when they are asked for are made here, one after the other: ``progress``
    is told how many of them (0..1) are written.
    """
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    model.opset_imports.setdefault("com.microsoft", 1)
    save_graph(model, folder, _looked_up(model), progress)


def find_linears(model: Any) -> list[Linear]:
    """List the linear layers in graph order.

    Raises:
        StageError: There are none, or large weights are used in other ways (experts, for example).
    """
    heads = find_heads(model)
    linears = [
        replace(linear, is_head=id(node) in heads)
        for node in model.graph
        if (linear := as_linear(node)) is not None
    ]
    if not linears:
        raise StageError(
            "The graph has no products with constant weights to work on.",
            remedy="Leave quantize out for this model.",
        )
    seen = {id(linear.node) for linear in linears}
    others = [
        node.name or node.op_type
        for node in model.graph
        if id(node) not in seen and _hides_a_weight(node)
    ]
    if others:
        raise StageError(
            f"{len(others)} layers of this architecture are no plain products "
            f"(for example {others[0]}), so they would silently stay as they are.",
            remedy="Leave quantize out for this model.",
        )
    return linears


def find_wide(linears: Sequence[Linear]) -> set[int]:
    """Of all linear layers those with inputs wider than the model, by the ``id`` of their node.

    As those of a feed-forward layer's output are.
    """
    width = next((linear.rows for linear in linears if linear.is_head), None)
    return {id(linear.node) for linear in linears if width is not None and linear.rows > width}


def find_embeddings(model: Any) -> list[Any]:
    """List the Gather nodes that look tokens up in a constant table (V, H)."""
    return [
        node
        for node in model.graph
        if node.op_type == "Gather"
        and node.attributes.get_int("axis", 0) == 0
        and _is_weight(node.inputs[0], ranks={2})
        and _comes_from_tokens(node.inputs[1])
    ]


def replace_node(old: Any, new: list[Any]) -> None:
    """Put nodes in the place of one; the last one's output takes over the old one's users."""
    import onnx_ir

    onnx_ir.convenience.replace_nodes_and_values(
        old.graph, old, [old], new, old.outputs, new[-1].outputs
    )


def new_weight(model: Any, name: str, array: NDArray[Any]) -> Any:
    """Add an initializer."""
    import onnx_ir

    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
    value.dtype = value.const_value.dtype
    value.shape = value.const_value.shape
    model.graph.register_initializer(value)
    return value


def as_linear(node: Any) -> Linear | None:
    """See a node as a linear layer, if it is one (whether it is the head is not looked at)."""
    if (node.domain, node.op_type) not in _PRODUCTS or node.inputs[1] is None:
        return None
    weight, is_transposed = node.inputs[1], False
    producer = weight.producer()
    if producer is not None and producer.op_type == "Transpose":
        weight, is_transposed = producer.inputs[0], True
    if node.op_type == "FusedMatMul":
        others = ("transA", "transBatchA", "transBatchB")
        if node.attributes.get_float("alpha", 1.0) != 1.0 or any(
            node.attributes.get_int(name, 0) for name in others
        ):
            return None
        is_transposed ^= bool(node.attributes.get_int("transB", 0))
    if node.op_type == "Gemm":
        plain = (
            not node.attributes.get_int("transA", 0)
            and node.attributes.get_float("alpha", 1.0) == 1.0
            and node.attributes.get_float("beta", 1.0) == 1.0
        )
        if not plain:
            return None
        is_transposed ^= bool(node.attributes.get_int("transB", 0))
    if not weight.is_initializer() or len(weight.const_value.shape) != 2:
        return None
    rows, columns = (int(size) for size in weight.const_value.shape)
    if is_transposed:
        rows, columns = columns, rows
    return Linear(
        node=node,
        weight=weight,
        is_transposed=is_transposed,
        rows=rows,
        columns=columns,
        is_head=False,
    )


def find_heads(model: Any) -> set[int]:
    """The ``id`` of the products that logits come from, behind scaling, capping and reshaping."""
    logits = [output for output in model.graph.outputs if output.name == "logits"]
    waiting, found, seen = [output.producer() for output in logits], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type in _ALL_PRODUCTS:
            found.add(id(node))
        elif node.op_type in _AFTER_HEAD:
            waiting += [value.producer() for value in node.inputs if value is not None]
    return found


def _looked_up(model: Any) -> list[Any]:
    """The initializers that tokens are looked up in, with their scales where they are quantized.

    Variants mostly have these in common, and ONNX Runtime leaves them mapped, while it makes
    copies of its own of what it multiplies with.
    """
    return [
        value
        for node in model.graph
        if node.op_type in {"Gather", "GatherBlockQuantized"} and _comes_from_tokens(node.inputs[1])
        for value in (node.inputs[0], *node.inputs[2:])
        if value is not None and value.is_initializer()
    ]


def _comes_from_tokens(value: Any) -> bool:
    """Whether ids are the graph's ``input_ids``, perhaps reshaped or cast."""
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in {"Reshape", "Cast", "Unsqueeze", "Squeeze", "Identity"}:
            return False
        value = producer.inputs[0]
    return value is not None and value.name == "input_ids"


def _hides_a_weight(node: Any) -> bool:
    """Whether a node multiplies with a large constant in a way that is not recognised."""
    if node.op_type in _MULTIPLYING:
        return any(_is_weight(value, ranks={2, 3, 4}) for value in node.inputs)
    if node.op_type in {"Gather", "Split", "Transpose"}:  # one expert of many
        return any(_is_weight(value, ranks={3, 4}) for value in node.inputs)
    return False


def _is_weight(value: Any, *, ranks: set[int]) -> bool:
    if value is None or not value.is_initializer() or value.const_value is None:
        return False
    constant = value.const_value
    return (
        len(constant.shape) in ranks
        and constant.size >= _LARGE
        and constant.dtype.is_floating_point()
    )
