"""Compares an exported graph with the torch module, through the session that will serve it.

Owns the schedules (whole, in chunks, ragged beside neighbours and idle slots, one generated token
at a time) and the tolerance. Where the module was asked with a shorter sliding window than its own,
the graph's windows are read, and a copy that differs in nothing but their length is compared.
Knows nothing of how the graph was made.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from artifacts.session import Row
from artifacts.session_factory import open_session
from optimizers.export.windows import read_windows, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from artifacts.manifest import GraphSpec
    from artifacts.session import DecoderSession
    from optimizers.export.reference import Reference, ReferenceText

TOLERANCE = 1e-4  # of the logit scale
_SLOTS = 5
_CHUNKS = (7, 1, 13)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a graph is from the module.

    Attributes:
        max_logit_error: The largest difference of one logit in any schedule.
        tokens_compared: Positions whose most likely token was compared.
        mismatch: Why the graph must not be used; None when it agrees.
    """

    max_logit_error: float
    tokens_compared: int
    mismatch: str | None


def verify(
    model: Path, graph: GraphSpec, reference: Reference, *, threads: int | None = None
) -> Verdict:
    """Run every schedule on a fresh session of the graph.

    Raises:
        SessionError: ONNX Runtime cannot load or run the graph.
    """
    if (mismatch := _judge_windows(model, graph, reference)) is not None:
        return Verdict(float("inf"), 0, mismatch)
    same = nullcontext(model)
    with same if reference.window is None else shortened(model, reference.window) as path:
        longest = max(len(text.tokens) for text in reference.texts)
        session = open_session(path, graph, slots=_SLOTS, max_length=longest, threads=threads)
        return compare(session, reference)


def compare(session: DecoderSession, reference: Reference) -> Verdict:
    """Run every schedule on ``session`` and judge the worst of them."""
    texts = reference.texts
    alone = [_Placed(text, slot=1) for text in texts]
    runs: list[tuple[str, list[_Placed], list[list[int]]]] = [
        *(("whole", [placed], [[placed.text.prompt]]) for placed in alone),
        ("in chunks", [_Placed(texts[0], slot=2)], _chunked(texts[0].prompt)),
        # Slots 1 and 3 stay idle; rows join and end at different steps.
        ("ragged", [_Placed(t, slot=s) for t, s in zip(texts, (4, 0, 2), strict=True)], [
            [7, 0, 5], [1, texts[1].prompt, max(texts[2].prompt - 5, 0)], [13, 1, 0],
        ]),
    ]  # fmt: skip
    worst, tokens = 0.0, 0
    for name, rows, plan in runs:
        for slot in range(_SLOTS):
            session.release(slot)
        given = _run(session, rows, plan)
        for placed, logits in zip(rows, given, strict=True):
            error = float(np.abs(logits - placed.text.logits).max())
            tokens += len(placed.text.tokens) - placed.text.prompt + 1
            worst = max(worst, error) if np.isfinite(error) else float("inf")
            mismatch = _judge(placed.text, logits, reference.scale)
            if mismatch:
                return Verdict(worst, tokens, f"{name}: {mismatch}")
    return Verdict(worst, tokens, None)


@dataclass(frozen=True, slots=True)
class _Placed:
    text: ReferenceText
    slot: int


def _chunked(prompt: int) -> list[list[int]]:
    plan, left = [], prompt
    for count in _CHUNKS:
        plan.append([min(count, left)])
        left -= plan[-1][0]
    return [*plan, [left]]


def _run(
    session: DecoderSession, rows: Sequence[_Placed], plan: Sequence[Sequence[int]]
) -> list[NDArray[np.float32]]:
    """Feed each row's text as planned, the prompt's rest next, then token by token.

    Returns:
        Per row, (n, vocab) float32, one line per token.
    """
    done = [0] * len(rows)
    given: list[list[NDArray[np.float32]]] = [[] for _ in rows]
    steps = iter(plan)
    while any(count < len(placed.text.tokens) for count, placed in zip(done, rows, strict=True)):
        planned = next(steps, None)
        step: list[tuple[int, Row]] = []
        for index, placed in enumerate(rows):
            start, text = done[index], placed.text
            rest = max(text.prompt - start, min(1, len(text.tokens) - start))
            count = rest if planned is None else min(planned[index], len(text.tokens) - start)
            if count:
                tokens = text.tokens[start : start + count]
                step.append((index, Row(placed.slot, start, tokens, count)))
        if not step:
            continue
        logits = session.step([row for _, row in step]).logits
        offset = 0
        for index, row in step:
            given[index].append(logits[offset : offset + row.logits].copy())
            offset += row.logits
            done[index] += len(row.tokens)
    return [np.concatenate(parts) for parts in given]


def _judge_windows(model: Path, graph: GraphSpec, reference: Reference) -> str | None:
    if graph.form == "packed":
        found = read_windows(model)
        if found != reference.windows:
            return f"the windows of its layers are {found} instead of {reference.windows}"
    elif reference.window is not None:
        longest = max(window for window in reference.windows if window is not None)
        return f"the plain form cannot be verified past a sliding window of {longest} tokens"
    return None


def _judge(text: ReferenceText, logits: NDArray[np.float32], scale: float) -> str | None:
    rounding = TOLERANCE * scale
    error = float(np.abs(logits - text.logits).max())
    if not error <= rounding:  # also when it is not a number
        return f"logits differ by {error:.2g} at a scale of {scale:.2g}"
    # Greedy tokens: they may differ only where the module's best two are within the rounding.
    for index in range(text.prompt - 1, len(text.tokens)):
        best = text.logits[index]
        chosen = int(logits[index].argmax())
        if best.max() - best[chosen] > 2 * rounding:
            return f"token {index + 1} is {chosen} instead of {int(best.argmax())}"
    return None
