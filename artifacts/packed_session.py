"""A decoder session over packed graphs: ragged rows in one run, cache in place.

Owns the cache. Where an artifact has two forms of its weights (see ``artifacts.forms``) there is a
graph of each, and both write that cache. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.errors import BugError, SessionError, StepTerminatedError
from artifacts.forms import planned
from artifacts.kv_cache import KvCache
from artifacts.manifest import GraphSpec
from artifacts.packed_graph import PackedGraph
from artifacts.runtime import Threads
from artifacts.scores import Scores
from artifacts.session import Row
from artifacts.side_by_side import side_by_side


class PackedSession:
    """Implements ``DecoderSession`` for graphs of the ``packed`` form."""

    def __init__(
        self,
        model: Path,
        graph: GraphSpec,
        *,
        slots: int,
        max_length: int,
        threads: Threads | int | None = None,
    ) -> None:
        if graph.form != "packed":
            raise BugError(f"A {graph.form} graph cannot run in a packed session.")
        if "sampled_rows" not in graph.inputs:
            raise SessionError(
                "The artifact was built by an older version and gives logits alone.",
                remedy="Build the variant again.",
            )
        if not 1 <= max_length <= graph.max_length:
            raise SessionError(
                f"max_length {max_length} does not lie within 1 and {graph.max_length}.",
                remedy="Set engine.max_length to what the model supports.",
            )
        self.slots = slots
        self.max_length = max_length
        self.vocab_size = graph.vocab_size
        self.forms = graph.forms
        resolved = threads if isinstance(threads, Threads) else Threads(count=threads)
        # ONNX Runtime wants room for the widest row's tokens behind every row's past, though it
        # never writes there. Twice the length is always enough, and untouched memory is free.
        self._cache = KvCache(graph.layers, slots=slots, max_length=2 * max_length)
        self.kv_bytes_per_token = self._cache.bytes_per_token
        self._lengths = np.zeros(slots, np.int32)

        def load(path: Path) -> PackedGraph:
            return PackedGraph(
                path,
                self._cache,
                self._lengths,
                max_length=max_length,
                vocab_size=graph.vocab_size,
                threads=resolved,
            )

        self._generated: PackedGraph
        self._prompts: PackedGraph | None = None
        if self.forms is None:
            self._generated = load(model)
        else:  # each packs its weights, on one core
            prompts = model.with_name(self.forms.prompts)
            self._generated, self._prompts = side_by_side(
                partial(load, model), partial(load, prompts)
            )
        self._run_options: Any = None
        self._terminated = False

    @property
    def cache(self) -> KvCache:
        """What the steps have written, for whoever calibrates on it; read-only."""
        return self._cache

    def step(self, rows: Sequence[Row]) -> Scores:
        """See ``DecoderSession.step``."""
        self._terminated = False
        if self._prompts is None or self.forms is None:
            return self._run(self._generated, rows)
        for run in planned(self.forms, rows):
            graph = self._prompts if run.is_prompts else self._generated
            scores = self._run(graph, run.rows)
        return scores

    def copy(self, source: int, target: int, length: int) -> None:
        """See ``DecoderSession.copy``."""
        self._cache.copy(source, target, length)
        self._lengths[target] = length

    def release(self, slot: int, keep: int = 0) -> None:
        """See ``DecoderSession.release``."""
        self._cache.release(slot, keep)
        self._lengths[slot] = keep

    def terminate(self) -> None:
        """See ``DecoderSession.terminate``."""
        self._terminated = True
        options = self._run_options
        if options is not None:
            options.terminate = True

    def _run(self, graph: PackedGraph, rows: Sequence[Row]) -> Scores:
        import onnxruntime as ort

        options = self._run_options = ort.RunOptions()
        if self._terminated:  # between the runs of one step
            raise StepTerminatedError("The step was terminated.")
        try:
            return graph.run(rows, options)
        except BugError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            if self._terminated:
                raise StepTerminatedError("The step was terminated.") from error
            raise SessionError(f"ONNX Runtime failed in a step: {error}") from error
        finally:
            self._run_options = None
