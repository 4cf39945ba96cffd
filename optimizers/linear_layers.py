"""The linear layers inside a torch module's decoder blocks: what pruning works on.

Owns which layers count (embeddings and head do not) and how their weights lie. Knows nothing
of what is done with them.
"""

from __future__ import annotations

from typing import Any

from optimizers.errors import StageError

_LINEAR = {"Linear", "Conv1D"}  # torch.nn's, and GPT-2's transposed one


def is_linear(layer: Any) -> bool:
    """Whether it is a layer of this kind."""
    return type(layer).__name__ in _LINEAR


def is_transposed(layer: Any) -> bool:
    """Whether the weight is (inputs, outputs) instead of (outputs, inputs)."""
    return type(layer).__name__ == "Conv1D"


def block_layers(module: Any) -> list[tuple[str, Any]]:
    """All linear layers of the decoder's blocks by name; one that is shared counts once.

    Raises:
        StageError: The architecture keeps its weights in some other way.
    """
    heads = {id(module.get_output_embeddings()), id(module.get_input_embeddings())}
    found: list[tuple[str, Any]] = []
    seen: set[int] = set()
    others: list[str] = []
    for name, layer in module.named_modules():
        if id(layer) in heads:
            continue
        if is_linear(layer):
            if id(layer.weight) not in seen:
                seen.add(id(layer.weight))
                found.append((name, layer))
            continue
        others += [
            f"{name}.{key}"
            for key, parameter in layer.named_parameters(recurse=False)
            if parameter.ndim >= 3
        ]
    if others:
        raise StageError(
            f"This architecture keeps {len(others)} weights outside linear layers "
            f"(for example {others[0]}), so they would silently stay as they are.",
            remedy="Leave this stage out for this model.",
        )
    if not found:
        raise StageError(
            "This architecture has no linear layers.", remedy="Leave this stage out for this model."
        )
    return found


def block_weights(module: Any) -> list[tuple[str, Any]]:
    """The weight matrices of all linear layers inside the decoder's blocks, as they lie.

    Raises:
        StageError: The architecture keeps its weights in some other way.
    """
    return [(f"{name}.weight", layer.weight) for name, layer in block_layers(module)]
