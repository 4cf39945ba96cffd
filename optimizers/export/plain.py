"""Describes graphs of the plain exchange form, the one that Optimum writes.

Owns the reading of past and present tensors from a graph's inputs and outputs. Knows nothing of
the exporters that make them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from artifacts.manifest import GraphSpec, KvLayer

if TYPE_CHECKING:
    from optimizers.export.decoder import Decoder

_INPUTS = frozenset({"input_ids", "attention_mask", "position_ids"})


class NotPlainError(Exception):
    """The graph is not of the plain form; the message says why."""


def plain_spec(model: Any, decoder: Decoder) -> GraphSpec:
    """Describe an ``onnx_ir.Model`` with ``past_key_values.i.key|value`` inputs.

    Raises:
        NotPlainError: It has other inputs, or no cache for one of the layers.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    outputs = {value.name for value in model.graph.outputs}
    layers = []
    for index in range(decoder.layers):
        past = tuple(f"past_key_values.{index}.{part}" for part in ("key", "value"))
        present = tuple(f"present.{index}.{part}" for part in ("key", "value"))
        if not inputs.keys() >= set(past) or not outputs >= set(present):
            raise NotPlainError(f"layer {index} has no key-value cache")
        key, value = (inputs[name].shape for name in past)
        layers.append(
            KvLayer(
                past_key=past[0],
                past_value=past[1],
                present_key=present[0],
                present_value=present[1],
                heads=int(key[1]),
                key_dim=int(key[3]),
                value_dim=int(value[3]),
            )
        )
    others = {name for name in inputs if not name.startswith("past_key_values.")} - _INPUTS
    if others:
        raise NotPlainError(f"it wants unknown inputs: {', '.join(sorted(others))}")
    return GraphSpec(
        form="plain",
        vocab_size=decoder.vocab_size,
        max_length=decoder.max_length,
        layers=tuple(layers),
        inputs=tuple(inputs),
    )
