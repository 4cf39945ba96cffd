"""ONNX Runtime's process-wide and per-session settings, in one place.

Owns how threads are shared: one pool for all sessions of a process when ``share_threads`` was
called (a server runs one step at a time, so variants must not each bring a pool), else a pool per
session. Knows nothing of graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import SessionError
from artifacts.isa import isa_class, saturates


@dataclass(frozen=True, slots=True)
class Threads:
    """Who computes: ``count`` threads of the session's own, or the process's shared pool."""

    count: int | None = None
    shared: bool = False


def share_threads(count: int) -> Threads:
    """Make one pool of ``count`` threads for the process; call once, before any session.

    Returns:
        What to give to every session that shall use the pool.
    """
    import onnxruntime as ort

    # The caller's thread works too, but ONNX Runtime already counts it in.
    ort.set_global_thread_pool_sizes(count, 1)
    return Threads(count=count, shared=True)


def open_runtime(model: Path, threads: Threads, *, profile_into: Path | None = None) -> Any:
    """Load a model file into ONNX Runtime on the CPU.

    Args:
        model: The file.
        threads: Who computes.
        profile_into: What the name of a profile of its runs begins with; None for no profile.

    Raises:
        SessionError: The file is no model that ONNX Runtime can load.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Every mix of rows is a new shape: patterns would be kept for each and never used again.
    options.enable_mem_pattern = False
    # int8 products saturate on x86 without VNNI unless weights are converted to unsigned. ONNX
    # Runtime would convert them with AVX-512 VNNI too, where that halves the speed for nothing.
    if saturates(isa_class()):
        options.add_session_config_entry("session.x64quantprecision", "1")
    if profile_into is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_into)
    if threads.shared:
        options.use_per_session_threads = False
    elif threads.count is not None:
        options.intra_op_num_threads = threads.count
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise SessionError(
            f"ONNX Runtime cannot load {model.name}: {error}",
            remedy="Build the variant again, or check that onnxruntime is the pinned version.",
        ) from error
