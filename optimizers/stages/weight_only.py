"""``quantize: {method: weight_only}``: weights as 4- or 8-bit blocks, activations as they were.

Owns where ``MatMulNBits`` and ``GatherBlockQuantized`` go and which bits each layer gets. The
kernels quantize activations per block of a row on the fly (``accuracy_level`` 4), so rows stay
independent of each other. Knows nothing of how a block is quantized or what bits are chosen by.

Measured on the demo model (mean KL to the original in nats, 7,389 positions): 4 bits in blocks of
32 with rtn 0.0140, with k_quant 0.0134, with hqq 0.0131, with gptq 0.0053, symmetric 0.0175 (gptq
0.0060); blocks of 16 and 128 0.0102 and 0.0231 (k_quant 0.0208, gptq 0.0085); 8 bits throughout
0.0002. The head at 4 bits as well costs 0.0195 and makes the artifact no smaller, since at 8 bits
it shares its bytes with the embeddings: hence its default. Mixed bits
with 5 and 6 per weight cost 0.0052 and 0.0020, at 4.7 and 5.1 MB between 4.1 and 6.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from artifacts.errors import BugError
from optimizers.errors import StageError
from optimizers.stage import Outcome, Report, Stage, Work

if TYPE_CHECKING:
    from artifacts.manifest import GraphSpec
    from optimizers.block_quantization import Rounding
    from optimizers.graph_flow import Reached
    from optimizers.linears import Linear
    from optimizers.prompt_graph import Other
    from optimizers.quantized_graph import Quantizer
    from optimizers.weight_plan import Wanted

FLOAT = 32  # bits of what stays as it is
FAST = 4  # the accuracy level that computes with int8 activations
_FIRST_SHARE = 0.6  # of the time of writing two forms
_LATER = {"mean_bits": None, "accuracy_level": FAST, "forms": "one"}


class QuantizeWeightOnly(Stage):
    """Store weights in few bits; the smallest artifact, and the fastest for single streams."""

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    form: ClassVar[Literal["torch", "onnx"]] = "onnx"
    rank: ClassVar[int] = 0
    reason: ClassVar[str] = "weights come first, from the float32 products of the export"
    group: ClassVar[str | None] = "quantize"

    method: Annotated[
        Literal["weight_only"], Field(description="weight_only: low-bit weights in blocks.")
    ] = "weight_only"
    bits: Annotated[
        Literal[4, 8, "mixed"],
        Field(
            description="Bits per weight: 4, 8, or mixed, which gives 8 to the products that "
            "need them most and 4 to the others, by measures on the calibration text."
        ),
    ] = 4
    mean_bits: Annotated[
        float | None,
        Field(
            ge=4,
            le=8,
            description="With mixed bits: how many a weight may have on average, between 4 (all "
            "products have 4) and 8 (all have 8). Scales and zero points, embeddings and lm_head "
            "are not counted.",
        ),
    ] = None
    block_size: Annotated[
        Literal[16, 32, 64, 128, 256],
        Field(
            description="Weights that share a scale: 16, 32, 64, 128 or 256. "
            "Smaller is closer to the original, larger is smaller and faster. Embeddings (and a "
            "head tied to them) take the largest that divides their width."
        ),
    ] = 32
    symmetric: Annotated[
        bool, Field(description="true: no zero points; smaller, a little less exact.")
    ] = False
    algorithm: Annotated[
        Literal["rtn", "k_quant", "hqq", "gptq"],
        Field(
            description="rtn rounds to nearest; k_quant searches each block's scale for the "
            "least error; hqq lets few weights be further off so that most are nearer; gptq makes "
            "up for errors on the calibration text (embeddings, and a head that has their bits "
            "and bytes, are rounded). Slower to build in this order, the same speed to serve."
        ),
    ] = "rtn"
    lm_head_bits: Annotated[
        Literal[4, 8, 32] | None,
        Field(
            description="Bits of the layer that gives the logits: 4, 8, or 32 to leave it as it "
            "is; null for the same as bits."
        ),
    ] = 8
    embedding_bits: Annotated[
        Literal[4, 8, 32] | None,
        Field(
            description="Bits of the embedding tables: 4, 8, or 32 to leave them as they are; "
            "null for the same as bits. With those of a tied lm_head, both share their bytes."
        ),
    ] = 8

    accuracy_level: Annotated[
        Literal["auto", 0, 1, 2, 3, 4],
        Field(
            description="How 4-bit products treat activations. 4: rounded to int8, which is fast; "
            "0 to 3: float32, which is exact and about half as fast; auto: 4 except where that "
            "costs more than rounding the weights does, by measures on the calibration text. "
            "8-bit products always have 4."
        ),
    ] = 4

    forms: Annotated[
        Literal["one", "by_role", "auto", "adaptive"],
        Field(
            description="one: the weights as they are above. by_role: prompts are computed by a "
            "second form of them, int8 with activations in int8 per row, which is faster for "
            "many tokens at a time where the processor has VNNI, and takes memory; generated "
            "tokens (and whatever gives logits) by the first. auto: by_role where a sweep of a "
            "second, on the machine that builds, finds prompts to gain, else one. adaptive: the "
            "second form computes whole steps of so many tokens as the sweep finds to gain, so a "
            "result depends on who else is served: it is not reproducible."
        ),
    ] = "one"

    @property
    def calibrates(self) -> bool:
        """Where something is measured, or GPTQ looks at what the text makes flow."""
        return self._measures or self.algorithm == "gptq"

    @property
    def _measures(self) -> bool:
        return self.bits == "mixed" or self.accuracy_level == "auto"

    @property
    def _fits_head(self) -> bool:
        """Whether gptq works on a tied head too: not where its bytes are the embeddings'."""
        return self.algorithm == "gptq" and self.lm_head_bits != self.embedding_bits

    def identity(self) -> dict[str, Any]:
        """Fields that came later count where they are set, so that older recipes stay valid."""
        fields = super().identity()
        unset = {name for name, value in _LATER.items() if fields[name] == value}
        kept = {name: value for name, value in fields.items() if name not in unset}
        if self.forms != "one":
            kept["prompts"] = "zero_points"  # of rows; before there were none
        if self.forms in {"adaptive", "auto"}:
            kept["sweep"] = "beyond_cache"  # before, of one product that stayed in it
        # Before there was this, such a head was rounded.
        return {**kept, "fits_head": True} if self._fits_head else kept

    def problem(self) -> tuple[str, str, str] | None:
        """Refuse what the algorithm cannot do, and fields that say different things."""
        mixed = self.bits == "mixed"
        if mixed != (self.mean_bits is not None):
            return (
                "mean_bits",
                "mean_bits belongs to mixed bits, and mixed bits need it.",
                "Give both, for example bits: mixed and mean_bits: 5, or neither.",
            )
        for name in ("lm_head_bits", "embedding_bits"):
            if mixed and getattr(self, name) is None:
                message = f"With mixed bits, {name} cannot be the same as bits."
                return name, message, "Give it a number."
        if self.bits == 8 and self.accuracy_level != FAST:
            return (
                "accuracy_level",
                "8-bit products have no fast kernel but that of level 4.",
                "Leave accuracy_level out, or set bits to 4 or mixed.",
            )
        if self.algorithm == "k_quant" and self.symmetric:
            return (
                "symmetric",
                "k_quant always has zero points.",
                "Set symmetric to false, or algorithm to rtn.",
            )
        return None

    @property
    def streams(self) -> bool:
        """Where weights alone decide, each matrix by itself."""
        return not self.calibrates

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Quantize the products, then the embeddings."""
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
        from optimizers.joined_products import join_products
        from optimizers.prompt_graph import Other
        from optimizers.quantized_graph import QuantizedGraph
        from optimizers.weight_plan import plan_weights, told

        original = model.clone() if self.forms != "one" else None
        graph = QuantizedGraph(model, self._rounding)
        found = linears.find_linears(model)
        tables = linears.find_embeddings(model)
        plans = plan_weights(self._wanted(), found, self._rounding, work, report)
        planned = {id(linear.node): plan for linear, plan in zip(found, plans, strict=True)}
        begun = 0.9 if self.algorithm == "gptq" else 0.6 if self._measures else 0.0
        left = iter(range(len(found)))

        def replace(linear: Linear, quantize: Quantizer | None = None) -> None:
            plan = planned[id(linear.node)]
            if plan.bits < FLOAT:
                graph.replace_linear(
                    linear,
                    plan.bits,
                    plan.accuracy_level,
                    quantize=quantize,
                    shares=not self._fits_head,
                )

        def replace_reached(reached: Reached) -> None:
            fitted = Fitted(reached.inputs)
            quantize = fitted.in_blocks(self.block_size, is_symmetric=self.symmetric)
            for linear in reached.products:
                report(0.9 * next(left) / len(found), "quantizing products")
                replace(linear, quantize)

        if self.algorithm == "gptq":
            visit_calibration(model, work, report, replace_reached, scratch=target)
        else:
            for linear in found:
                replace(linear)
        bits = self._or_bits(self.embedding_bits)
        looked_up = [graph.replace_table(node, bits) for node in tables if bits < FLOAT]
        join_products(model)
        # All that GPTQ has not made is made as it is written.
        end = 1.0 if original is None else begun + _FIRST_SHARE * (1 - begun)
        linears.save(
            model, target, lambda part: report(begun + (end - begun) * part, "quantizing weights")
        )
        notes = told(plans, found)
        plan = plans if notes else ()
        if original is None:
            return Outcome(notes=notes, plan=plan)
        spec, note = self._second_form(
            original,
            Other(model, looked_up),
            work,
            target,
            lambda part, doing: report(end + (1 - end) * part, doing),
        )
        return Outcome(notes=(*notes, note), plan=plan, graph=spec)

    def _second_form(
        self, model: Any, other: Other, work: Work, target: Path, report: Report
    ) -> tuple[GraphSpec | None, str]:
        """Add the graph for prompts, where it pays; gives how both are run, and what was found.

        ``model`` is as the export gave it, ``other`` what became of it.
        """
        from artifacts.manifest import Forms
        from optimizers import linears
        from optimizers.forms_sweep import ROWS, rows_to_change
        from optimizers.prompt_graph import write_prompt_graph
        from optimizers.publish import PROMPTS

        spec = work.graph_spec()
        if spec.form != "packed":
            raise StageError(
                "Two forms of the weights need a graph in the packed form.",
                path="forms",
                remedy="Set forms to one for this model.",
            )
        rows: int | None = 1
        note = "prompts are computed in int8"
        if self.forms != "by_role":
            report(0.0, "timing both forms of a product")
            rows = rows_to_change(
                linears.find_linears(model),
                self._rounding,
                4 if self.bits == "mixed" else self.bits,
                scratch=target,
                threads=work.threads,
            )
            if rows is None:
                return None, f"one form: int8 is no faster here, up to {ROWS[-1]} tokens at a time"
            note = f"int8 is faster here from {rows} tokens on"
        choice: Literal["by_role", "adaptive"] = (
            "adaptive" if self.forms == "adaptive" else "by_role"
        )
        write_prompt_graph(
            model,
            spec,
            target,
            other,
            scores=choice == "adaptive",
            progress=lambda part: report(part, "quantizing weights for prompts"),
        )
        forms = Forms(choice=choice, prompts=PROMPTS, rows=rows or 1)
        return spec.model_copy(update={"forms": forms}), note

    def _wanted(self) -> Wanted:
        from optimizers.weight_plan import Wanted

        return Wanted(
            bits=self.bits,
            mean_bits=self.mean_bits,
            head_bits=self._or_bits(self.lm_head_bits),
            level=self.accuracy_level,
        )

    def _or_bits(self, given: int | None) -> int:
        """Bits of the head or the embeddings, which may be those of the products."""
        if given is not None:
            return given
        if self.bits == "mixed":
            raise BugError("Mixed bits were planned for the products alone.")
        return self.bits

    @property
    def _rounding(self) -> Rounding:
        from optimizers.block_quantization import Rounding

        return Rounding(
            block_size=self.block_size,
            is_symmetric=self.symmetric,
            algorithm="rtn" if self.algorithm == "gptq" else self.algorithm,
        )
