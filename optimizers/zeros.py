"""Counts exact zeros in the products of an ONNX graph, quantized or not.

Owns the check that what ``prune`` zeroed is still zero in what will be served. Knows nothing of how
zeros came to be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from optimizers import linears
from optimizers.block_quantization import Blocks
from optimizers.errors import StageError


def check_zeros(folder: Path, wanted: int) -> int:
    """Count the zeros of a model in the ONNX form.

    Raises:
        StageError: There are fewer than ``wanted``, so a mask was lost on the way.
    """
    found = count_zeros(linears.load(folder))
    if found < wanted:
        raise StageError(
            f"Pruning made {wanted} weights zero, but only {found} still are.",
            remedy="Leave prune out, and report this: a later step has undone it.",
        )
    return found


def count_zeros(model: Any) -> int:
    """Count weights that are exactly zero in all products but the head's."""
    heads = linears.find_heads(model)
    return sum(_zeros(node) for node in model.graph if id(node) not in heads)


def _zeros(node: Any) -> int:
    match node.op_type:
        case "MatMulNBits":
            return int(np.count_nonzero(_blocks(node).restore(node.attributes.get_int("K")) == 0))
        case "MatMulIntegerToFloat":
            return int(np.count_nonzero(node.inputs[1].const_value.numpy() == 0))
        case _:
            linear = linears.as_linear(node)
            return 0 if linear is None else int(np.count_nonzero(linear.matrix() == 0))


def _blocks(node: Any) -> Blocks:
    packed = node.inputs[1]
    if (producer := packed.producer()) is not None:  # a table shared with the embeddings
        packed = producer.inputs[0]
    rows, size = node.attributes.get_int("N"), node.attributes.get_int("block_size")
    scales = node.inputs[2].const_value.numpy().reshape(rows, -1)
    zero_points = node.inputs[3] if len(node.inputs) > 3 else None
    return Blocks(
        packed=packed.const_value.numpy().reshape(rows, scales.shape[1], -1),
        scales=scales,
        zero_points=None if zero_points is None else zero_points.const_value.numpy(),
        bits=node.attributes.get_int("bits"),
        block_size=size,
    )
