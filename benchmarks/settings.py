"""How a run of the bench is set: sizes of requests, threads, limits of time.

Owns the numbers and the config file that our server gets. Knows nothing of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KV_BYTES = 4 << 30
SLOTS = 16
STEP_TOKENS = 256
MAX_LENGTH = 1_024
STREAMS = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of every contender, and how long it may take.

    Attributes:
        rounds: How often everybody has their turn.
        prompt_tokens: Of the prompts that throughput is measured with.
        new_tokens: Generated for each of them.
        long_prompt_tokens: Of the prompts that time to first token is measured with.
        repeats: Figures per turn of what takes little time.
        threads: For whoever computes.
        quiet_s: How long to wait for a quiet machine before each turn.
        answer_s: Within which a contender must answer.
        start_s: Within which a contender must be ready, its optimization included.
    """

    rounds: int
    prompt_tokens: int
    new_tokens: int
    long_prompt_tokens: int
    repeats: int
    threads: int
    quiet_s: float
    answer_s: float = 600.0
    start_s: float = 3_600.0


def write_config(
    path: Path,
    *,
    model: Path,
    store: Path,
    variant: str,
    chain: list[dict[str, Any]],
    threads: int,
    max_length: int = MAX_LENGTH,
    is_measured: bool = True,
    calibration: Path | None = None,
    evaluation: Path | None = None,
) -> Path:
    """A config of our server with one variant; ports are free ones on loopback.

    A variant that ``is_measured`` has a limit that nothing exceeds: it is measured before it
    serves, and so never beside a turn. Without ``calibration``, what is fitted to a text is fitted
    to one that the model writes; so it is measured without ``evaluation``, which takes a large
    model minutes.
    """
    budget = {"budget": {"kl_mean": 1000, "on_breach": "warn"}} if is_measured else {}
    config = {
        "model": str(model),
        "store": str(store),
        "offline": True,
        **budget,
        **({"calibration": {"text": str(calibration)}} if calibration else {}),
        **({"evaluation": {"text": str(evaluation)}} if evaluation else {}),
        "variants": {variant: chain},
        "engine": {
            "slots": SLOTS,
            "max_length": max_length,
            "kv_bytes": KV_BYTES,
            "step_tokens": STEP_TOKENS,
            "threads": threads,
        },
        "server": {"host": "127.0.0.1", "grpc_port": 0, "http_port": 0, "ops_port": 0},
        "log": {"level": "info", "format": "console"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
