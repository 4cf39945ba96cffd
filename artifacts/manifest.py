"""The manifest: everything that is known about one artifact, as frozen values.

Owns the JSON form that lies in the store. Knows nothing of where files lie, of torch or of
serving.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FORMAT: Literal[1] = 1
"""Of manifests. Fields with defaults may come without a new one; whoever renames or removes one, or
changes what one means, raises it."""


class Frozen(BaseModel):
    """A value that crosses a seam: immutable, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KvLayer(Frozen):
    """One layer's key-value cache: ``(rows, heads, length, key_dim | value_dim)``.

    The scales of an int8 cache are constants of the graph.
    """

    past_key: str
    past_value: str
    present_key: str
    present_value: str
    heads: int
    key_dim: int
    value_dim: int
    dtype: Literal["float32", "int8"] = "float32"


class Forms(Frozen):
    """That the weights are there twice, and which of them computes a token (``artifacts.forms``).

    ``prompts`` is the file, beside the model's, of the graph for prompts; with ``adaptive`` it
    gives logits too, and computes steps of ``rows`` tokens or more.
    """

    choice: Literal["by_role", "adaptive"]
    prompts: str
    rows: int = 1


class GraphSpec(Frozen):
    """How to run the graph.

    ``packed`` takes live tokens of all rows in one sequence and keeps the cache in place (inputs
    are listed in ``artifacts.session``); ``plain`` is the exchange form of Optimum
    (``input_ids``, ``attention_mask``, ``position_ids``, past in, present out) run one row at a
    time. ``forms`` is None where there is one form of the weights.
    """

    form: Literal["packed", "plain"]
    vocab_size: int
    max_length: int
    layers: tuple[KvLayer, ...]
    inputs: tuple[str, ...]
    forms: Forms | None = None


class GenerationDefaults(Frozen):
    """The model's own ``generation_config.json``, as far as serving reads it; None = not set."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class ModelSource(Frozen):
    """Which model the chain began with.

    ``id`` is the hub id, ``demo``, or the folder's name (never a path of one machine);
    ``revision`` the hub commit, or ``sha256:<digest of the folder's files>``.
    """

    id: str
    revision: str
    architecture: str
    license: str | None = None


class DocumentQuality(Frozen):
    """The same measures on one document, from which intervals are drawn.

    ``nll`` and ``original_nll`` are nats per token of this and of the original, on a user's text
    only.
    """

    positions: int
    kl_mean: float
    agreement: float
    nll: float | None = None
    original_nll: float | None = None


class Quality(Frozen):
    """Quality of one stage's result against the original model, on held-out text.

    KL(original || this) in nats over positions from 16 on; ``perplexity`` only on a user's text,
    whose file's SHA-256 (hex) is ``text_sha256``; None for a text that the original wrote itself.
    ``by_document`` has one entry per document (a window of a text), in their order; it is empty
    in artifacts that were built before it was kept.
    """

    kl_mean: float
    kl_p99: float
    top1_agreement: float
    perplexity: float | None = None
    original_perplexity: float | None = None
    documents: int
    positions: int
    isa: str
    text_sha256: str | None = None
    by_document: tuple[DocumentQuality, ...] = ()


class NodePlan(Frozen):
    """How one product of the graph is computed, and what was measured to decide on it.

    ``kl`` tells what rounding it alone to that many bits costs (mean KL in nats); ``level_error``
    what int8 activations cost its worst row (a share of the row's output); None or empty where
    nothing was measured.
    """

    node: str
    bits: int
    accuracy_level: int
    kl: dict[int, float] = {}
    level_error: float | None = None


class StageRecord(Frozen):
    """One step of the lineage: a stage (or the export) and what it cost and gained.

    ``compressed_bytes`` tells what a standard compressor (zlib, level 6) makes of the weights, on
    the last step of a chain that made zeros.
    """

    stage: str
    method: str = ""
    params: dict[str, Any] = {}
    form: Literal["torch", "onnx"]
    seconds: float
    size_bytes: int
    parameters: int | None = None
    zeros: int | None = None
    compressed_bytes: int | None = None
    quality: Quality | None = None
    notes: tuple[str, ...] = ()
    plan: tuple[NodePlan, ...] = ()


class ExportRecord(Frozen):
    """Which exporter made the graph and how far it was from the torch module."""

    exporter: Literal["mobius", "trace", "optimum"]
    max_logit_error: float
    logit_scale: float
    tokens_compared: int
    tried: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class KernelFinding(Frozen):
    """One node that ONNX Runtime computes by a slow kernel: which rule tells so, and why it is."""

    node: str
    operator: str
    rule: str
    reason: str


class FileEntry(Frozen):
    """One file of the artifact: its name inside it, its size in bytes and its SHA-256 (hex)."""

    name: str
    size_bytes: int
    sha256: str


class Manifest(Frozen):
    """One artifact. Its digest is the SHA-256 of its content alone (see ``content_digest``)."""

    format: Literal[1] = FORMAT
    recipe: str
    model: ModelSource
    chain: tuple[dict[str, dict[str, Any]], ...]
    graph: GraphSpec
    generation: GenerationDefaults
    files: tuple[FileEntry, ...]
    export: ExportRecord
    lineage: tuple[StageRecord, ...]
    libraries: dict[str, str]
    created: str
    audit: tuple[KernelFinding, ...] = ()

    @property
    def digest(self) -> str:
        """The artifact's identity (hex)."""
        return content_digest(self.files, self.graph, self.generation)

    @property
    def quality(self) -> Quality | None:
        """The measures of the last stage that was measured, which are the artifact's."""
        measured = [record.quality for record in self.lineage if record.quality is not None]
        return measured[-1] if measured else None

    def measured(self, quality: Quality) -> Manifest:
        """The same with these figures for the finished artifact, and so for its last stage."""
        *before, last = self.lineage
        lineage = (*before, last.model_copy(update={"quality": quality}))
        return self.model_copy(update={"lineage": lineage})

    @property
    def audit_lines(self) -> tuple[str, ...]:
        """What the audit found, a line for all nodes of one kind with one reason."""
        nodes: dict[tuple[str, str], list[str]] = {}
        for one in self.audit:
            nodes.setdefault((one.operator, one.reason), []).append(one.node)
        return tuple(
            f"{operator}{_named(names)}: {reason}" for (operator, reason), names in nodes.items()
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size_bytes for entry in self.files)


def _named(nodes: list[str]) -> str:
    """One node by its name, and how many more; nothing where the whole graph is meant."""
    if not nodes[0]:
        return ""
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return f" ({nodes[0]}{more})"


def canonical_json(value: Any) -> bytes:
    """Render a JSON value in the one form that digests are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_digest(
    files: tuple[FileEntry, ...], graph: GraphSpec, generation: GenerationDefaults
) -> str:
    """SHA-256 (hex) over an artifact's content: files, how to run them, generation defaults."""
    content = {
        "files": {entry.name: entry.sha256 for entry in files},
        # Without defaults: a field that came later must not rename the artifacts from before it.
        "graph": graph.model_dump(mode="json", exclude_defaults=True),
        "generation": generation.model_dump(mode="json"),
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()
