"""The second exporter: torch traces transformers' own module, attention aside.

Serves whatever attends in a way that ``GroupQueryAttention`` can express, in the packed form, with
rotary embeddings computed by the module from explicit positions. Slower to build than a
declarative graph. Knows nothing of single architectures.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optimizers.export.folding import fold_transposes
from optimizers.export.graph_file import save
from optimizers.export.packed import UnpackableError, pack
from optimizers.export.reference import load_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from artifacts.manifest import GraphSpec
    from optimizers.export.decoder import Decoder

_OPSET = 23  # the first with RMSNormalization and Attention; ONNX Runtime 1.32 runs 24
_TOKENS = 5  # of the example: neither 0, 1 nor any dimension of a model
_LENGTH = 37


def export(decoder: Decoder, out: Path) -> GraphSpec:
    """Write ``out/model.onnx`` in the packed form, from a trace of the torch module.

    Raises:
        UnpackableError: The module does not attend through anything that can be replaced.
    """
    module = load_module(decoder.folder)
    put, shapes = _find_attention(decoder, module)
    model = _trace(module, put, shapes)
    fold_transposes(model)
    graph = pack(model, decoder, None)
    save(model, out)
    return graph


def _find_attention(decoder: Decoder, module: Any) -> tuple[Any, list[tuple[int, int, int]]]:
    """Find how the module's attention can be replaced, and the shapes of its cache."""
    import torch

    from optimizers.export.trace_attention import (
        Attending,
        new_cache,
        through_interface,
        through_torch,
    )

    tokens = torch.zeros(1, _TOKENS, dtype=torch.int64)
    positions = torch.arange(_TOKENS)[None]
    for put in (through_interface, through_torch):
        attending = Attending()
        try:
            with put(module, attending), torch.inference_mode():
                _forward(module, tokens, positions, new_cache(), mask=put is through_torch)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            continue  # a module that cannot be told to attend this way trips over its own mask
        if len(attending.shapes) == decoder.layers:
            return put, attending.shapes
    raise UnpackableError("its attention is computed in a way of its own")


def _forward(module: Any, tokens: Any, positions: Any, cache: Any, *, mask: bool) -> Any:
    import torch

    arguments: dict[str, Any] = {}
    if mask:
        # A mask of four dimensions is taken as it is, so none is made from lengths.
        arguments["attention_mask"] = torch.zeros(1, 1, 1, 1)
    return module(
        input_ids=tokens,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **arguments,
    ).logits


def _trace(module: Any, put: Any, shapes: list[tuple[int, int, int]]) -> Any:
    """Trace into an ``onnx_ir.Model`` of the form that ``pack`` takes."""
    import torch

    from optimizers.export.trace_attention import Attending, new_cache, through_torch

    class Step(torch.nn.Module):  # type: ignore[misc]
        """One pass of the module with its cache as plain tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, tokens: Any, positions: Any, past: list[Any]) -> tuple[Any, ...]:
            attending = Attending(past=list(zip(past[::2], past[1::2], strict=True)))
            with put(self.module, attending):
                logits = _forward(
                    self.module, tokens, positions, new_cache(), mask=put is through_torch
                )
            return (logits, *(value for pair in attending.present for value in pair))

    past = [torch.zeros(1, heads, _LENGTH, dim) for heads, *dims in shapes for dim in dims]
    names = [f"{i}.{part}" for i in range(len(shapes)) for part in ("key", "value")]
    count, length = torch.export.Dim("tokens", max=1 << 20), torch.export.Dim("length", max=1 << 20)
    tokens = torch.zeros(1, _TOKENS, dtype=torch.int64)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            Step(),
            (tokens, torch.arange(_TOKENS)[None], past),
            dynamo=True,
            opset_version=_OPSET,
            input_names=["input_ids", "position_ids", *(f"past_key_values.{n}" for n in names)],
            output_names=["logits", *(f"present.{n}" for n in names)],
            dynamic_shapes=({1: count}, {1: count}, [{2: length}] * len(past)),
            verbose=False,
        )
    return program.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's notes on its own internals out of the build's log."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
