"""Runs one stage of the ONNX form on an exported graph, without a build around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.manifest import GraphSpec
from optimizers.spec import parse_chain
from optimizers.stage import Outcome, Work

DOCUMENTS, LENGTH = 24, 64


def random_windows(
    vocabulary: int, *, count: int = DOCUMENTS, length: int = LENGTH
) -> list[np.ndarray]:
    """Give documents of random tokens."""
    return list(np.random.default_rng(11).integers(0, vocabulary, (count, length)))


def run_stage(
    fields: dict[str, Any],
    model: Path,
    graph: GraphSpec,
    target: Path,
    windows: Sequence[np.ndarray] | None = None,
) -> Outcome:
    """Apply ``quantize`` with these fields; the result lies in ``target``."""
    chain = parse_chain("chain", [{"quantize": fields}])
    assert not chain.errors, chain.errors
    (stage,) = chain.stages
    given = random_windows(graph.vocab_size) if windows is None else windows
    original: Any = None  # such a stage works on the graph alone
    work = Work(model.parent, graph, original, _nobody, lambda _: given, 1)
    return stage.apply(work, target, lambda *_: None)


def _nobody(*_: object) -> Any:
    pytest.fail("the stage needs no other model")
