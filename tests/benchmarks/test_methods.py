"""The table of all methods: what it shows, and that what it compares can be built."""

from __future__ import annotations

from typing import Any

from artifacts.protocol import PlanRequest
from benchmarks.methods import CONFIG, notes, table
from optimizers.plan import plan
from server.config import sources


def estimate(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def variant(**changes: Any) -> dict[str, Any]:
    speeds = ("decode_1_tokens_per_second", "decode_8_tokens_per_second")
    return {
        "size_bytes": 21_500_000,
        "speeds": {key: estimate(120.4) for key in (*speeds, "prefill_tokens_per_second")},
        "quality": {
            "kl_mean": estimate(0.01234),
            "top1_agreement": estimate(0.951),
            "perplexity": estimate(22.046),
        },
        "comparisons": {},
        "failure": None,
    } | changes


REPORT = {
    "began": "2026-11-24",
    "machine": {"processor": "Abacus", "isa": "x", "cores": 2, "libraries": {}},
    "rounds": 3,
    "remarks": ["Others used the machine."],
    "failed": {"large": "no memory"},
    "variants": {
        "baseline": variant(),
        "int4": variant(
            comparisons={
                "decode_1_tokens_per_second": estimate(1.904, 1.8, 2.0),
                "decode_8_tokens_per_second": estimate(1.2),
                "prefill_tokens_per_second": estimate(0.9, 0.8, 1.0),
            }
        ),
        "lost": variant(failure="The server does not come up."),
    },
}


def test_each_variant_is_a_row_of_figures_beside_the_baseline() -> None:
    """The baseline has its own speeds; the others theirs over the baseline's."""
    head, _, baseline, int4, lost = table(REPORT)
    assert head.count("|") == baseline.count("|") == int4.count("|") == lost.count("|")
    assert baseline == (
        "| baseline | 21.5 | 120 tokens/s | 120 tokens/s | 120 tokens/s | 0.0123 | 95.1% | 22.05 |"
    )
    assert "| 1.90x [1.80, 2.00] | 1.20x | 0.90x [0.80, 1.00] |" in int4
    assert "does not come up" in lost


def test_the_machine_and_what_failed_stand_below() -> None:
    """A figure without its machine says nothing."""
    told = "\n".join(notes(REPORT))
    for said in ("Abacus", "3 rounds", "Others used the machine.", "large failed: no memory"):
        assert said in told


def test_every_method_that_there_is_can_be_planned() -> None:
    """The config is right, and leaves out no method of the table of stages."""
    from optimizers.stages import TABLE

    config = sources.load(CONFIG, environment={}, flags={})
    chains = {name: variant.chain for name, variant in config.variants.items()}
    answer = plan(PlanRequest(model="demo", variants=chains))
    assert not answer.errors
    used = {
        (name, fields.get("method", ""))
        for planned in answer.variants.values()
        for stage in planned.chain
        for name, fields in stage.items()
    }
    missing = {(entry.name, entry.method) for entry in TABLE} - used
    assert missing == {("distill", "substitute")}  # the demo model has no siblings
