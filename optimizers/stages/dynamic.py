"""``quantize: {method: dynamic}``: int8 weights per column, int8 activations per row, on the fly.

Owns the operators that a product becomes. ONNX Runtime's ``DynamicQuantizeMatMul`` takes one scale
for the whole tensor, so an outlier in one request would coarsen everybody else's activations; here
each row (token) has its own, and integer sums are exact, so a row's result does not depend on the
others at all. Knows nothing of how the graph came about.

Weights are signed and activations unsigned, the pair that x86 has instructions for. Without VNNI
(AVX2, for example) these sum neighbouring products in 16 bits, which saturate. With
``session.x64quantprecision=1``, which every session here sets, ONNX Runtime converts the weights to
unsigned while loading on such machines: products are exact there too, and machines with VNNI keep
their fast form. On the demo model and AVX2 (mean KL to the original in nats): 0.0007; without that
setting 0.0051; with weights of 7 bits, which cannot saturate anywhere, 0.0012.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from optimizers.stage import Outcome, Report, Stage, Work


class QuantizeDynamic(Stage):
    """Compute products in int8; fastest for prompts and many streams."""

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    form: ClassVar[Literal["torch", "onnx"]] = "onnx"
    rank: ClassVar[int] = 0
    reason: ClassVar[str] = "weights come first, from the float32 products of the export"
    group: ClassVar[str | None] = "quantize"

    method: Annotated[
        Literal["dynamic"],
        Field(description="dynamic: int8 weights per column, int8 activations per row."),
    ] = "dynamic"
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

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Turn each product into an integer one; products of the same input share its rounding."""
        from optimizers import linears
        from optimizers.integer_graph import IntegerGraph
        from optimizers.quantized_graph import QuantizedGraph, embedding_blocks

        model = linears.load(work.folder)
        found = [one for one in linears.find_linears(model) if self.lm_head or not one.is_head]
        tables = linears.find_embeddings(model) if self.embedding_bits == 8 else []
        graph = IntegerGraph(model)
        for index, linear in enumerate(found):
            report(0.9 * index / len(found), "quantizing products")
            graph.replace_linear(linear)
        embeddings = QuantizedGraph(model, embedding_blocks)
        for node in tables:
            embeddings.replace_table(node, self.embedding_bits)
        report(0.9, "writing")
        linears.save(model, target)
        return Outcome()
