"""Adds to a packed graph what spares the reader of its logits from going through all of them.

Owns the nodes behind the logits that compute what ``artifacts.scores`` defines, with all threads of
ONNX Runtime and while the logits are still in the processor's cache. Knows nothing of the decoder.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from artifacts.scores import block_width


def add_scores(model: Any, vocab_size: int) -> None:
    """Extend an ``onnx_ir.Model`` whose output ``logits`` is (1, logits, vocab) in place.

    It gets the inputs ``sampled_rows`` and ``inverse_temperatures`` and the other outputs that
    ``artifacts.session`` lists.
    """
    import onnx_ir as ir

    graph = model.graph

    def value(name: str, dtype: Any, shape: list[Any]) -> Any:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    def constant(name: str, numbers: list[int]) -> Any:
        tensor = ir.tensor(np.array(numbers, np.int64), name=name)
        made = value(name, tensor.dtype, [len(numbers)])
        made.const_value = tensor
        graph.register_initializer(made)
        return made

    def node(name: str, op_type: str, *inputs: Any, **attributes: int) -> Any:
        made = ir.node(op_type, inputs, attributes, name=name)
        made.outputs[0].name = name
        graph.append(made)
        return made.outputs[0]

    def output(made: Any, shape: list[Any], dtype: Any = ir.DataType.FLOAT) -> None:
        made.type = ir.TensorType(dtype)
        made.shape = ir.Shape(shape)
        graph.outputs.append(made)

    width = block_width(vocab_size)
    blocks = vocab_size // width
    # A 0 keeps the size that is there, which may be none at all where no row is sampled.
    cut = constant("scores.cut", [1, 0, blocks, width])
    axis = constant("scores.axis", [3])
    axis_of_blocks = constant("scores.axis_of_blocks", [2])
    rows = value("sampled_rows", ir.DataType.INT64, ["sampled"])
    inverse = value("inverse_temperatures", ir.DataType.FLOAT, ["sampled", 1])
    graph.inputs.extend([rows, inverse])

    logits = next(out for out in graph.outputs if out.name == "logits")
    cut_logits = node("scores.cut_logits", "Reshape", logits, cut)
    maxima = node("block_maxima", "ReduceMax", cut_logits, axis, keepdims=0)
    output(maxima, [1, "logits", blocks])

    # The highest of all lies in the block with the highest maximum, the first of equals.
    block = node("scores.best_block", "ArgMax", maxima, axis=2, keepdims=1)
    inside = node("scores.inside", "GatherND", cut_logits, block, batch_dims=2)
    place = node("scores.best_place", "ArgMax", inside, axis=2, keepdims=1)
    begin = node("scores.best_begin", "Mul", block, constant("scores.width", [width]))
    best = node("scores.best", "Add", begin, place)
    best = node("best", "Squeeze", best, axis_of_blocks)
    output(best, [1, "logits"], ir.DataType.INT64)
    best_logits = node("best_logits", "ReduceMax", inside, axis_of_blocks, keepdims=0)
    output(best_logits, [1, "logits"])

    sampled = node("scores.sampled", "Gather", logits, rows, axis=1)
    scaled = node("scores.scaled", "Mul", sampled, inverse)
    probabilities = node("probabilities", "Softmax", scaled, axis=-1)
    output(probabilities, [1, "sampled", vocab_size])
    cut_probabilities = node("scores.cut_probabilities", "Reshape", probabilities, cut)
    sums = node("block_sums", "ReduceSum", cut_probabilities, axis, keepdims=0)
    output(sums, [1, "sampled", blocks])
