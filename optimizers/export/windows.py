"""The sliding windows of a packed graph: reading them, and a copy of the graph with shorter ones.

A window of thousands of tokens is too long to be crossed by a text that a model of billions of
weights can be verified on. In the copy, whose weights stay where they are, a short text shows which
layers have one. Knows nothing of texts or of the torch module.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optimizers.export.packed import attention_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ATTRIBUTE = "local_window_size"
_NO_WINDOW = -1  # the operator's own word for it


def read_windows(model: Path) -> tuple[int | None, ...]:
    """Give how many tokens the attention of each layer sees; None = all of them."""
    import onnx_ir as ir

    return windows_of(ir.load(model))


def windows_of(graph: Any) -> tuple[int | None, ...]:
    """Give the same of a graph that is loaded (an ``onnx_ir.Model``)."""
    return tuple(_window(node) for node in attention_nodes(graph))


@contextmanager
def shortened(model: Path, window: int) -> Iterator[Path]:
    """Give a copy, for as long as the context lasts, in which every window is of that length."""
    import onnx_ir as ir

    copy = model.with_suffix(".short.onnx")  # beside it, where its weights are found
    graph = ir.load(model)
    for node in attention_nodes(graph):
        if _window(node) is not None:
            node.attributes[_ATTRIBUTE] = ir.AttrInt64(_ATTRIBUTE, window)
    try:
        ir.save(graph, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _window(node: Any) -> int | None:
    attribute = node.attributes.get(_ATTRIBUTE)
    return None if attribute is None or attribute.value == _NO_WINDOW else int(attribute.value)
