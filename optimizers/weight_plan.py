"""Which bits and which kernel each product of a graph gets.

Owns the order: bits first, given or chosen by sensitivity, then the accuracy level of each 4-bit
product, given or measured. Knows nothing of how a matrix is quantized or of what the graph becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import BugError
from artifacts.manifest import NodePlan
from optimizers import mixed_bits
from optimizers.accuracy_levels import FAST, level_error
from optimizers.block_quantization import Blocks
from optimizers.calibration import within
from optimizers.linears import Linear
from optimizers.probe import GraphProbe
from optimizers.stage import Report, Work

Bits = Literal[4, 8, "mixed"]
Level = Literal["auto", 0, 1, 2, 3, 4]
Quantize = Callable[[NDArray[np.float32], int], Blocks]
"""Quantizes a matrix (N, K) to some bits."""

_LEVEL_WINDOWS = 4  # of calibration text


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for: ``head_bits`` of the head, ``bits`` of all other products.

    ``mean_bits`` is what mixed bits may take on average; ``level`` is of 4-bit products.
    """

    bits: Bits
    mean_bits: float | None
    head_bits: int
    level: Level


def plan_weights(
    wanted: Wanted, linears: Sequence[Linear], quantize: Quantize, work: Work, report: Report
) -> tuple[NodePlan, ...]:
    """Decide on every product, in the order given."""
    plans = _bits(wanted, linears, quantize, work, report)
    if wanted.level != "auto":
        level = wanted.level
        return tuple(
            one.model_copy(update={"accuracy_level": level}) if one.bits == mixed_bits.FEW else one
            for one in plans
        )
    return _measured_levels(plans, linears, quantize, work, report)


def told(plans: Sequence[NodePlan], linears: Sequence[Linear]) -> tuple[str, ...]:
    """The plan in a line or two, for the lineage."""
    planned = [(one, linear) for one, linear in zip(plans, linears, strict=True) if one.kl]
    notes = []
    if planned:
        sizes = [linear.rows * linear.columns for _, linear in planned]
        bits = [one.bits for one, _ in planned]
        mean = np.average(bits, weights=sizes)
        loss = sum(one.kl[one.bits] for one, _ in planned)
        notes.append(
            f"{bits.count(mixed_bits.FEW)} products at 4 bits and {bits.count(mixed_bits.MANY)} at "
            f"8, {mean:.2f} per weight; their losses add up to {loss:.2g} nats"
        )
    errors = [one for one in plans if one.level_error is not None]
    if errors:
        slow = sum(one.accuracy_level != FAST for one in errors)
        worst = max(one.level_error or 0.0 for one in errors)
        notes.append(
            f"{slow} of {len(errors)} 4-bit products keep float32 activations; "
            f"int8 ones cost up to {worst:.2g} of a row's output"
        )
    return tuple(notes)


def _bits(
    wanted: Wanted, linears: Sequence[Linear], quantize: Quantize, work: Work, report: Report
) -> list[NodePlan]:
    head = [_plan(one, wanted.head_bits) for one in linears if one.is_head]
    others = [one for one in linears if not one.is_head]
    if wanted.bits == "mixed":
        rest = _mixed(wanted, others, quantize, work, report)
    else:
        rest = [_plan(one, wanted.bits) for one in others]
    heads, products = iter(head), iter(rest)
    return [next(heads if one.is_head else products) for one in linears]


def _plan(linear: Linear, bits: int, kl: Mapping[int, float] | None = None) -> NodePlan:
    name = linear.node.name or linear.weight.name
    return NodePlan(node=name, bits=bits, accuracy_level=FAST, kl=dict(kl or {}))


def _mixed(
    wanted: Wanted, linears: Sequence[Linear], quantize: Quantize, work: Work, report: Report
) -> list[NodePlan]:
    if work.graph is None or wanted.mean_bits is None:
        raise BugError("Mixed bits need the exported graph and what they may take.")
    sensitivities = mixed_bits.measure(
        GraphProbe(work.folder, work.graph, threads=work.threads),
        linears,
        within(work.calibration(report), work.graph.vocab_size),
        lambda matrix, bits: quantize(matrix, bits).restore(matrix.shape[1]),
        lambda share: report(0.5 * share, "measuring products"),
    )
    chosen = mixed_bits.choose(sensitivities, wanted.mean_bits)
    return [
        _plan(linear, bits, one.losses)
        for linear, bits, one in zip(linears, chosen, sensitivities, strict=True)
    ]


def _measured_levels(
    plans: Sequence[NodePlan],
    linears: Sequence[Linear],
    quantize: Quantize,
    work: Work,
    report: Report,
) -> tuple[NodePlan, ...]:
    if work.graph is None:
        raise BugError("Accuracy levels are measured on the exported graph.")
    tried = [
        linear for linear, plan in zip(linears, plans, strict=True) if plan.bits == mixed_bits.FEW
    ]
    if not tried:
        return tuple(plans)
    watched = sorted({linear.node.inputs[0].name for linear in tried})
    probe = GraphProbe(work.folder, work.graph, watched=watched, threads=work.threads)
    windows = within(work.calibration(report), work.graph.vocab_size)[:_LEVEL_WINDOWS]
    last = np.zeros(1, np.int64)
    seen = [probe.run(window, last, {})[1] for window in windows]
    decided = []
    for index, (linear, plan) in enumerate(zip(linears, plans, strict=True)):
        report(0.5 + 0.1 * index / len(linears), "measuring activations")
        if plan.bits != mixed_bits.FEW:
            decided.append(plan)
            continue
        matrix = linear.matrix()
        rows = np.concatenate([one[linear.node.inputs[0].name] for one in seen])
        blocks = quantize(np.ascontiguousarray(matrix.T), plan.bits)
        error = level_error(matrix, blocks, rows)
        changes = {"accuracy_level": error.level, "level_error": error.activations}
        decided.append(plan.model_copy(update=changes))
    return tuple(decided)
