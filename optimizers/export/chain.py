"""Tries the exporters in order until one agrees with the torch module.

Owns the order and the record of what was tried. Each attempt is verified before anything is built
on it; a refusal or a mismatch moves on to the next.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from artifacts.manifest import ExportRecord, GraphSpec
from optimizers.errors import ExportError
from optimizers.export import mobius_exporter, optimum_exporter, trace_exporter
from optimizers.export.decoder import Decoder, read_decoder, refusal
from optimizers.export.graph_file import MODEL_FILE, remove
from optimizers.export.reference import Reference, make_reference
from optimizers.export.verify import verify
from optimizers.failures import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_REASON_CHARACTERS = 300  # of a foreign exporter's message


@dataclass(frozen=True, slots=True)
class Exported:
    """A verified graph on disk.

    Attributes:
        model: ``model.onnx``; its weights lie in ``model.onnx.data`` beside it.
        graph: How to run it.
        record: Which exporter made it, how far it is from the torch module, what was tried before.
    """

    model: Path
    graph: GraphSpec
    record: ExportRecord


@dataclass(frozen=True, slots=True)
class _Attempt:
    exporter: Literal["mobius", "trace", "optimum"]
    label: str
    write: Callable[[Decoder, Path], GraphSpec]


def export(
    model_dir: Path,
    out_dir: Path,
    *,
    progress: Callable[[float, str], None],
    threads: int | None = None,
    optimum_python: str | None = None,
) -> Exported:
    """Export a Hugging Face folder to a float32 graph that agrees with its torch module.

    Args:
        model_dir: Folder with ``config.json`` and safetensors.
        out_dir: Where ``model.onnx`` and ``model.onnx.data`` are written.
        progress: Told how far the export is, 0..1, and what it does.
        threads: Threads of torch and of the verifying session; None = all cores.
        optimum_python: Interpreter of an environment with optimum-onnx, to try that as well.

    Raises:
        ExportError: No exporter can do this architecture; names what each one said.
    """
    decoder = read_decoder(model_dir)
    attempts = _attempts(optimum_python)
    reference: Reference | None = None
    tried: list[str] = []
    for index, attempt in enumerate(attempts):
        done = index / len(attempts)
        progress(done, f"exporting with {attempt.label}")
        try:
            graph = attempt.write(decoder, out_dir)
            progress(done + 0.5 / len(attempts), f"verifying what {attempt.label} made")
            reference = reference or _reference(decoder, threads)
            verdict = verify(out_dir / MODEL_FILE, graph, reference, threads=threads)
        except ExportError:  # of the torch module, which no other exporter would change
            remove(out_dir)
            raise
        # Foreign builders raise anything at all for a model they do not know; each says why.
        except Exception as error:
            if is_exhausted(error):
                raise
            tried.append(f"{attempt.label}: {reason_of(error, out_dir)}")
            continue
        if verdict.mismatch is not None:
            tried.append(f"{attempt.label}: {verdict.mismatch}")
            continue
        progress(1.0, f"exported with {attempt.label}")
        record = ExportRecord(
            exporter=attempt.exporter,
            max_logit_error=verdict.max_logit_error,
            logit_scale=reference.scale,
            tokens_compared=verdict.tokens_compared,
            tried=tuple(tried),
            notes=reference.notes,
        )
        return Exported(model=out_dir / MODEL_FILE, graph=graph, record=record)
    remove(out_dir)
    raise refusal(decoder.architecture, tried)


def _reference(decoder: Decoder, threads: int | None) -> Reference:
    """Ask the torch module once; what it cannot do is its own failure and no exporter's.

    Raises:
        ExportError: The module cannot be loaded or run.
    """
    try:
        return make_reference(decoder, threads=threads)
    # Modules fail in as many ways as there are architectures; each says why.
    except Exception as error:
        if is_exhausted(error):
            raise
        reason = f"its torch module cannot be run: {reason_of(error, decoder.folder)}"
        raise refusal(decoder.architecture, [reason]) from error


def _attempts(optimum_python: str | None) -> list[_Attempt]:
    """List the exporters, forms that can serve many rows at once before the one that cannot."""
    attempts = [
        _Attempt("mobius", "mobius", mobius_exporter.export_packed),
        _Attempt("trace", "trace", trace_exporter.export),
        _Attempt("mobius", "mobius (plain form)", mobius_exporter.export_plain),
    ]
    if optimum_python is not None:
        write = partial(optimum_exporter.export, python=optimum_python)
        attempts.append(_Attempt("optimum", "optimum", write))
    return attempts


def reason_of(error: Exception, folder: Path) -> str:
    """Shorten an exception to its first line, without this machine's path of ``folder``."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0].strip().replace(f"{folder}{os.sep}", "")
    return f"{type(error).__name__}: {text}"[:_REASON_CHARACTERS]
