"""Opens the session that an artifact's graph form needs.

Knows the two forms and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from artifacts.manifest import GraphSpec
from artifacts.packed_session import PackedSession
from artifacts.plain_session import PlainSession
from artifacts.runtime import Threads
from artifacts.session import DecoderSession


def open_session(
    model: Path,
    graph: GraphSpec,
    *,
    slots: int,
    max_length: int,
    threads: Threads | int | None = None,
) -> DecoderSession:
    """Load ``model`` with a cache of ``slots`` sequences of up to ``max_length`` tokens.

    Raises:
        SessionError: ONNX Runtime cannot load it, or it cannot run sequences of that length.
    """
    kind = PackedSession if graph.form == "packed" else PlainSession
    return kind(model, graph, slots=slots, max_length=max_length, threads=threads)
