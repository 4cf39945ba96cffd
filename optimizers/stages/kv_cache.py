"""``quantize: {method: kv_cache}``: the key-value cache as int8, a quarter of its memory.

A server holds four times as many tokens in the same memory, and attention over a long context
reads a quarter. There is one scale per head and channel, since some channels of keys are far larger
than others (Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", 2024,
https://arxiv.org/abs/2402.02750); it is fixed on the calibration text, since the operator wants
constants. Owns the order of calibrating, editing and checking.

Measured on the demo model with float32 weights (mean KL in nats): 1.0e-4 at positions 16 to 255,
1.7e-4 from 600 on; with one scale per layer 2.7e-4 and 3.9e-4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from artifacts.errors import BugError
from optimizers.calibration import within
from optimizers.errors import StageError
from optimizers.stage import Outcome, Report, Stage, Work

_LARGEST_KL = 0.05  # nats; more is no rounding, but a cache that does not work
_WINDOWS = 64  # of calibration text; more moved no scale that mattered


class QuantizeKvCache(Stage):
    """Keep keys and values in int8."""

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    form: ClassVar[Literal["torch", "onnx"]] = "onnx"
    rank: ClassVar[int] = 1
    reason: ClassVar[str] = "its scales must fit the weights that will be served"
    group: ClassVar[str | None] = "kv_cache"

    method: Annotated[
        Literal["kv_cache"],
        Field(description="kv_cache: keys and values as int8, calibrated per head and channel."),
    ]
    bits: Annotated[Literal[8], Field(description="Bits of a cached number: 8.")] = 8

    @property
    def calibrates(self) -> bool:
        """Scales come from the calibration text."""
        return True

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Find the scales, edit the graph, and compare it with what it was."""
        from optimizers import kv_comparison, linears
        from optimizers.attention import read_attentions
        from optimizers.kv_graph import quantize_cache
        from optimizers.kv_kernel import check_kernel
        from optimizers.kv_scales import find_scales
        from optimizers.prompt_graph import load_prompt_graph, save_prompt_graph
        from optimizers.publish import MODEL

        if work.graph is None:
            raise BugError("A cache is quantized in the exported graph.")
        model = linears.load(work.folder)
        attentions = read_attentions(model, work.graph)
        windows = within(work.calibration(report), work.graph.vocab_size)
        documents = kv_comparison.documents_of(windows[::-1], work.graph.max_length)
        session = kv_comparison.open_compared(work.folder / MODEL, work.graph, threads=work.threads)
        scales = find_scales(
            session,
            attentions,
            windows[:_WINDOWS],
            lambda share: report(0.6 * share, "calibrating the cache"),
        )
        report(0.6, "comparing")
        bytes_before = session.kv_bytes_per_token
        before = kv_comparison.run_ragged(session, documents)
        del session  # two at a time would take twice the memory
        for attention, of_layer in {
            one.kind: (one, of_layer) for one, of_layer in zip(attentions, scales, strict=True)
        }.values():
            check_kernel(attention, of_layer)
        served = quantize_cache(model, work.graph, attentions, scales)
        report(0.7, "writing")
        linears.save(model, target)
        if work.graph.forms is not None:
            prompts = load_prompt_graph(work.folder)
            quantize_cache(prompts, work.graph, read_attentions(prompts, work.graph), scales)
            save_prompt_graph(prompts, target, model)
        report(0.8, "comparing")
        session = kv_comparison.open_compared(target / MODEL, served, threads=work.threads)
        lost = kv_comparison.divergence(before, kv_comparison.run_ragged(session, documents))
        if not lost <= _LARGEST_KL:  # also when it is not a number
            raise StageError(
                f"With an int8 cache the model's predictions move by {lost:.2g} nats.",
                path="method",
                remedy="Leave kv_cache out for this model.",
            )
        longest = max(tokens.size for _, tokens in documents)
        return Outcome(
            graph=served,
            notes=(
                f"{session.kv_bytes_per_token} bytes of cache per token instead of {bytes_before}",
                f"KL to the float32 cache {lost:.2g} nats over {longest} tokens, ragged, in chunks",
            ),
        )
