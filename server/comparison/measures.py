"""What is compared: each measure with its unit, its direction and how a person calls it.

Owns names (they are the keys in reports, the store and metrics) and how values are written. Knows
nothing of how they are taken.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from server.comparison.speed import Speed

Unit = Literal["tokens/s", "s", "bytes", "nats", "share", "factor"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure.

    Attributes:
        key: Its name in JSON, in the store and as a label.
        title: What a table calls it.
        phrase: What a sentence calls it, after a factor: ``1.9x the ...``.
        unit: Of its values.
        better: Its direction.
    """

    key: str
    title: str
    phrase: str
    unit: Unit
    better: Literal["more", "less"]


@dataclass(frozen=True, slots=True)
class SpeedMeasure(Measure):
    """A measure that every round gives a value of; variants are compared by ratio."""

    of: Callable[[Speed], float]


def _median_first(speed: Speed) -> float:
    return statistics.median(speed.first_token_s)


DECODE_1 = SpeedMeasure(
    "decode_1_tokens_per_second",
    "Decoding, 1 stream",
    "decoding speed of one stream",
    "tokens/s",
    "more",
    lambda speed: speed.decode_1,
)
DECODE_8 = SpeedMeasure(
    "decode_8_tokens_per_second",
    "Decoding, 8 streams",
    "decoding speed of eight streams",
    "tokens/s",
    "more",
    lambda speed: speed.decode_8,
)
PREFILL = SpeedMeasure(
    "prefill_tokens_per_second",
    "Prefill",
    "prefill speed",
    "tokens/s",
    "more",
    lambda speed: speed.prefill,
)
FIRST_TOKEN = SpeedMeasure(
    "time_to_first_token_seconds",
    "Time to first token",
    "time to the first token",
    "s",
    "less",
    _median_first,
)
ENGINE = SpeedMeasure(
    "engine_seconds_per_token",
    "Engine time per token",
    "engine time per token",
    "s",
    "less",
    lambda speed: speed.engine_seconds_per_token,
)
RESIDENT = SpeedMeasure(
    "resident_bytes",
    "Resident memory",
    "resident memory",
    "bytes",
    "less",
    lambda speed: speed.resident_bytes,
)
LOAD = SpeedMeasure(
    "load_seconds", "Load time", "load time", "s", "less", lambda speed: speed.load_s
)
SPEEDS = (DECODE_1, DECODE_8, PREFILL, FIRST_TOKEN, ENGINE, RESIDENT, LOAD)
"""Every measure of a round, in the order of reports."""

KL = Measure("kl_mean", "KL", "KL divergence from the original", "nats", "less")
AGREEMENT = Measure(
    "top1_agreement", "Agreement", "agreement with the original's choice", "share", "more"
)
PERPLEXITY = Measure("perplexity", "Perplexity", "perplexity", "factor", "less")
QUALITIES = (KL, AGREEMENT, PERPLEXITY)


def written(value: float, unit: Unit) -> str:
    """A value with its unit, to three digits or so."""
    match unit:
        case "tokens/s":
            return f"{_digits(value)} tokens/s"
        case "s":
            return duration(value)
        case "bytes":
            return size(value)
        case "nats":
            return f"{_digits(value)} nats"
        case "share":
            return f"{value:.1%}"
        case "factor":
            return _digits(value)


def duration(seconds: float) -> str:
    """``1.2 ms``, ``3.4 s``, ``12 min``."""
    if seconds < 1:
        return f"{_digits(seconds * 1e3)} ms"
    if seconds < 120:
        return f"{_digits(seconds)} s"
    return f"{seconds / 60:.0f} min"


def size(count: float) -> str:
    """``24.1 MB``; a megabyte is a million bytes."""
    return f"{_digits(count / 1e6)} MB" if count < 1e9 else f"{_digits(count / 1e9)} GB"


def factor(value: float) -> str:
    """``1.90x``; more digits where it is near 1 or 0."""
    if value >= 100:
        return f"{value:.0f}x"
    if value >= 10:
        return f"{value:.1f}x"
    return f"{value:.2f}x" if value >= 0.1 else f"{_digits(value)}x"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent unless it is tiny."""
    if value == 0:
        return "0"
    if abs(value) < 1e-5:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    shown = f"{value:#.3g}"
    return shown.rstrip(".")
