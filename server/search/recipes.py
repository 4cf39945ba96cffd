"""What is known to be worth trying: recipes that begin a search, and the space of a config without.

Owns no stage: a chain that a version of the optimizer does not know is left out by whoever plans.
Not in the space: pruning to zeros, which makes no dense kernel faster and no file smaller. Knows
nothing of configs or studies.
"""

from __future__ import annotations

from typing import Any

_RECOVER: dict[str, Any] = {"method": "recover", "minutes": 1}


def known_good(layers: int | None) -> list[tuple[str, list[Any]]]:
    """Recipes with their names, for a model of so many layers (None: not known)."""
    int4 = {"quantize": {"method": "weight_only", "bits": 4, "algorithm": "k_quant"}}
    recipes: list[tuple[str, list[Any]]] = [
        ("int8", [{"quantize": {"method": "dynamic"}}]),
        ("int4", [int4]),
    ]
    if layers is not None and layers > 1:
        tenth, fifth = (max(round(layers * share), 1) for share in (0.1, 0.2))
        recipes += [
            ("depth -10 %, int4", [_depth(tenth), int4]),
            ("depth -20 %, recover, int4", [_depth(fifth), {"distill": _RECOVER}, int4]),
        ]
    return recipes


def default_chains(layers: int | None) -> list[list[Any]]:
    """Chains with something open for a model of so many layers, the richest first."""
    quantize = {
        "choice": [
            {"quantize": {"method": "dynamic", "lm_head": {"choice": [True, False]}}},
            {
                "quantize": {
                    "method": "weight_only",
                    "bits": {"choice": [4, 8]},
                    "block_size": {"choice": [32, 64, 128]},
                    "algorithm": {"choice": ["rtn", "k_quant"]},
                }
            },
        ]
    }
    if layers is None or layers < 2:
        return [[quantize]]
    depth = _depth({"low": 1, "high": max(layers // 4, 1)})
    # Few rates instead of a range: a trained model is then reused by every trial that only
    # quantizes it differently.
    recover = {"distill": _RECOVER | {"learning_rate": {"choice": [0.0005, 0.0002, 0.001]}}}
    return [
        [{"choice": ["none", depth, [depth, recover]]}, quantize],
        [{"choice": ["none", depth]}, quantize],
    ]


def _depth(drop: Any) -> dict[str, Any]:
    return {"restructure": {"method": "depth", "drop": drop}}
