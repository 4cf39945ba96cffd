"""``quantize: {method: dynamic}``: int8 weights per column, int8 activations per row, on the fly.

Owns the operators that a product becomes. ONNX Runtime's ``DynamicQuantizeMatMul`` takes one scale
for the whole tensor, so an outlier in one request would coarsen everybody else's activations; here
each row (token) has its own, and integer sums are exact, so a row's result does not depend on the
others at all. Knows nothing of how the graph came about.

Weights are signed and activations unsigned, the pair that x86 has instructions for. Without VNNI
(AVX2, for example) these sum neighbouring products in 16 bits, which saturate. With
``session.x64quantprecision=1``, which sessions set there and nowhere else, ONNX Runtime converts
the weights to unsigned while loading: products are exact there too, and machines with VNNI keep
their fast form.

Measured on the demo model with VNNI (mean KL to the original in nats, 7,389 positions): 0.00055,
and 0.00081 without zero points of rows; with gptq 0.00046, and smoothquant before it 0.00043. Much
of it comes from the inputs of feed-forward layers' outputs, whose largest activations are far from
the others: with ``wide_block_size`` 128, 64 and 32 0.00047, 0.00041 and 0.00037.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from artifacts.errors import BugError
from optimizers.integer_products import IntegerProducts
from optimizers.stage import Outcome, Report, Work

if TYPE_CHECKING:
    from optimizers.gptq import Fitted
    from optimizers.graph_flow import Reached
    from optimizers.linears import Linear

_LATER = {"wide_block_size": None, "algorithm": "rtn"}


class QuantizeDynamic(IntegerProducts):
    """Compute products in int8; fastest for prompts and many streams."""

    version: ClassVar[int] = 2

    method: Annotated[
        Literal["dynamic"],
        Field(description="dynamic: int8 weights per column, int8 activations per row."),
    ] = "dynamic"
    wide_block_size: Annotated[
        Literal[32, 64, 128] | None,
        Field(
            description="For products whose inputs are wider than the model, as those of a "
            "feed-forward layer's output are: weights and activations have a scale for so many "
            "inputs instead of one per column and row. A few activations are large there, and "
            "coarsen a whole row. Closer to the original, and slower for prompts; null treats them "
            "as all others."
        ),
    ] = None
    algorithm: Annotated[
        Literal["rtn", "gptq"],
        Field(
            description="rtn rounds weights to nearest; gptq makes up for errors on the "
            "calibration text (but not for those of the embeddings). Slower to build, the same "
            "speed to serve."
        ),
    ] = "rtn"

    def identity(self) -> dict[str, Any]:
        """Fields that came later count where they are set, so that older recipes stay valid."""
        fields = super().identity()
        unset = {name for name, value in _LATER.items() if fields[name] == value}
        return {name: value for name, value in fields.items() if name not in unset}

    @property
    def calibrates(self) -> bool:
        """Where GPTQ looks at what the text makes flow."""
        return self.algorithm == "gptq"

    @property
    def streams(self) -> bool:
        """Where weights alone decide, each matrix by itself."""
        return not self.calibrates

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Turn each product into an integer one; products of the same input share its rounding."""
        from optimizers import linears

        return self._quantize(linears.load(work.folder), work, target, report)

    def stream(self, model: Any, work: Work, target: Path, report: Report) -> Outcome:
        """The same with a graph that was never written."""
        if not self.streams:
            raise BugError("This form of the stage cannot be streamed.")
        return self._quantize(model, work, target, report)

    def _quantize(self, model: Any, work: Work, target: Path, report: Report) -> Outcome:
        from optimizers import linears
        from optimizers.gptq import Fitted
        from optimizers.graph_flow import visit_calibration
        from optimizers.integer_graph import IntegerGraph

        every = linears.find_linears(model)
        wide = linears.find_wide(every)
        tables = self.find_tables(model)
        graph = IntegerGraph(model)
        left = iter(range(len(every)))

        def replace(linear: Linear, fitted: Fitted | None = None) -> None:
            if linear.is_head and not self.lm_head:
                return
            if id(linear.node) in wide and self.wide_block_size is not None:
                self._in_blocks(model, linear, self.wide_block_size, fitted)
                return
            quantize = None if fitted is None else fitted.columns
            graph.replace_linear(linear, quantize)

        def replace_reached(reached: Reached) -> None:
            fitted = Fitted(reached.inputs)
            for linear in reached.products:
                report(0.9 * next(left) / len(every), "quantizing products")
                replace(linear, fitted)

        if self.algorithm == "gptq":
            visit_calibration(model, work, report, replace_reached, scratch=target)
        else:
            for linear in every:
                replace(linear)
        # What GPTQ has not made is made as it is written.
        self.finish(model, tables, target, report, begun=0.9 if self.calibrates else 0.0)
        return Outcome()

    def _in_blocks(
        self, model: Any, linear: Linear, block_size: int, fitted: Fitted | None
    ) -> None:
        from optimizers.block_quantization import Rounding
        from optimizers.quantized_graph import QuantizedGraph

        rounding = Rounding(block_size=block_size, is_symmetric=False, algorithm="rtn")
        quantize = None if fitted is None else fitted.in_blocks(block_size, is_symmetric=False)
        graph = QuantizedGraph(model, rounding)
        graph.replace_linear(linear, self.bits, quantize=quantize, shares=False)
