"""An export that is never written: its weights stay where they are, until they are asked for.

Owns how it is verified: nothing of the whole model can be run, so the exporter is, on a miniature
with the model's own weights, and what it made of that is compared with the torch module as every
export is. Knows nothing of what becomes of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifacts.manifest import ExportRecord, GraphSpec
from optimizers.errors import ExportError
from optimizers.export.chain import reason_of
from optimizers.export.decoder import read_decoder
from optimizers.export.graph_file import MODEL_FILE, as_saved
from optimizers.export.miniature import write_miniature
from optimizers.export.mobius_exporter import build_packed, export_packed
from optimizers.export.reference import make_reference
from optimizers.export.verify import verify
from optimizers.export.windows import windows_of
from optimizers.failures import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optimizers.export.decoder import Decoder


class UnwrittenError(Exception):
    """This model's export must be written and verified as a whole; the message says why."""


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A graph whose weights are read when they are asked for.

    Attributes:
        model: An ``onnx_ir.Model``, the same as if it were loaded from a written export.
        graph: How to run it.
        record: How far the miniature was from its torch module.
        float_bytes: What the weights would take up, had they been written.
    """

    model: Any
    graph: GraphSpec
    record: ExportRecord
    float_bytes: int


def export_unwritten(
    model_dir: Path,
    scratch: Path,
    *,
    progress: Callable[[float, str], None],
    threads: int | None = None,
) -> Unwritten:
    """Export a Hugging Face folder to a float32 graph without writing its weights.

    Args:
        model_dir: Folder with ``config.json`` and safetensors.
        scratch: An empty folder for the miniature; it may be deleted afterwards.
        progress: Told how far the export is, 0..1, and what it does.
        threads: Threads of torch and of the verifying session; None = all cores.

    Raises:
        ExportError: No exporter could do this model.
        UnwrittenError: The first exporter does not do its miniature right, or there is none.
    """
    decoder = read_decoder(model_dir)
    try:
        record = _verify_miniature(decoder, scratch, progress, threads)
        progress(0.8, "building the whole graph")
        model, graph = build_packed(decoder)
    except (ExportError, UnwrittenError):
        raise
    # Foreign builders raise anything at all for a model they do not know; each says why.
    except Exception as error:
        if is_exhausted(error):
            raise
        raise UnwrittenError(reason_of(error, model_dir)) from error
    if windows_of(model) != decoder.windows:
        raise UnwrittenError("the windows of its layers are others than the config's")
    float_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    return Unwritten(as_saved(model), graph, record, float_bytes)


def _verify_miniature(
    whole: Decoder,
    scratch: Path,
    progress: Callable[[float, str], None],
    threads: int | None,
) -> ExportRecord:
    """Raises ``UnwrittenError`` where the exporter does not do right by the miniature."""
    progress(0.0, "exporting a miniature with mobius")
    miniature = write_miniature(whole, scratch / "miniature")
    decoder = read_decoder(miniature.folder)
    graph = export_packed(decoder, scratch / "graph")
    progress(0.4, "verifying the miniature")
    reference = make_reference(decoder, threads=threads)
    verdict = verify(scratch / "graph" / MODEL_FILE, graph, reference, threads=threads)
    if verdict.mismatch is not None:
        raise UnwrittenError(f"in a miniature, {verdict.mismatch}")
    note = (
        f"verified on a miniature with {miniature.layers} of {whole.layers} layers and "
        f"{miniature.tokens} of {whole.vocab_size} tokens; the whole graph was built alike"
    )
    return ExportRecord(
        exporter="mobius",
        max_logit_error=verdict.max_logit_error,
        logit_scale=reference.scale,
        tokens_compared=verdict.tokens_compared,
        notes=(note, *reference.notes),
    )
