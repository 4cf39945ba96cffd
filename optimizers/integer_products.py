"""What both ways of computing products in int8 share: their place in a chain and their fields.

Owns which layers become integer ones, and the embeddings beside them. Knows nothing of how an
activation gets its scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers.stage import Report, Stage


class IntegerProducts(Stage):
    """Computes products in int8."""

    name: ClassVar[str] = "quantize"
    form: ClassVar[Literal["torch", "onnx"]] = "onnx"
    rank: ClassVar[int] = 0
    reason: ClassVar[str] = "weights come first, from the float32 products of the export"
    group: ClassVar[str | None] = "quantize"

    bits: Annotated[Literal[8], Field(description="Bits of weights and activations: 8.")] = 8
    lm_head: Annotated[
        bool, Field(description="Whether the layer that gives the logits is quantized too.")
    ] = True
    embedding_bits: Annotated[
        Literal[8, 32],
        Field(
            description="Bits of the token embeddings: 8 (in blocks of 32), or 32 to leave them "
            "as they are."
        ),
    ] = 8

    def find_tables(self, model: Any) -> list[Any]:
        """The look-ups of embeddings to be quantized; found before products are replaced."""
        from optimizers.linears import find_embeddings

        return find_embeddings(model) if self.embedding_bits == 8 else []

    def finish(
        self, model: Any, tables: list[Any], target: Path, report: Report, *, begun: float = 0.9
    ) -> None:
        """Quantize embeddings in a graph whose products are done, and write it.

        ``begun`` is the share of the work (0..1) that is done.
        """
        from optimizers import linears
        from optimizers.quantized_graph import EMBEDDINGS, QuantizedGraph

        embeddings = QuantizedGraph(model, EMBEDDINGS)
        for node in tables:
            embeddings.replace_table(node, self.embedding_bits)
        linears.save(
            model, target, lambda part: report(begun + (1 - begun) * part, "quantizing weights")
        )
