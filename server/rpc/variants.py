"""Views of variants into messages: chain, lineage with its measures, limits, progress."""

from __future__ import annotations

import json

from artifacts.manifest import Manifest, Quality, StageRecord
from protos import inference_pb2 as pb
from server.catalog import VariantState, VariantView

_STATES = {
    VariantState.PENDING: pb.VARIANT_STATE_PENDING,
    VariantState.BUILDING: pb.VARIANT_STATE_BUILDING,
    VariantState.LOADING: pb.VARIANT_STATE_LOADING,
    VariantState.READY: pb.VARIANT_STATE_READY,
    VariantState.FAILED: pb.VARIANT_STATE_FAILED,
}


def variant_message(view: VariantView, *, is_default: bool) -> pb.Variant:
    """All that is known of a variant."""
    message = pb.Variant(
        name=view.name,
        is_default=is_default,
        state=_STATES[view.state],
        chain_json=_json([dict(stage) for stage in view.chain]),
        recipe=view.recipe,
        artifact=view.artifact or "",
        error=view.error or "",
        traffic_weight=view.weight,
    )
    if (limits := view.limits) is not None:
        message.limits.max_length = limits.max_length
        message.limits.slots = limits.slots
        message.limits.kv_budget_tokens = limits.kv_budget_tokens
        message.limits.max_waiting = limits.max_waiting
    if (progress := view.progress) is not None:
        message.progress.stage = progress.stage
        message.progress.stage_index = progress.stage_index
        message.progress.stage_count = progress.stage_count
        message.progress.fraction = progress.fraction
        message.progress.elapsed_seconds = progress.elapsed_s
        message.progress.message = progress.message
    if view.manifest is not None:
        _fill_manifest(message, view.manifest)
    return message


def _fill_manifest(message: pb.Variant, manifest: Manifest) -> None:
    message.model.id = manifest.model.id
    message.model.revision = manifest.model.revision
    message.model.architecture = manifest.model.architecture
    message.size_bytes = manifest.size_bytes
    message.export.exporter = manifest.export.exporter
    message.export.max_logit_error = manifest.export.max_logit_error
    message.export.logit_scale = manifest.export.logit_scale
    message.export.tokens_compared = manifest.export.tokens_compared
    message.libraries.update(manifest.libraries)
    message.created = manifest.created
    message.audit.extend(manifest.audit_lines)
    message.lineage.extend(_stage(record) for record in manifest.lineage)


def _stage(record: StageRecord) -> pb.Stage:
    return pb.Stage(
        stage=record.stage,
        method=record.method,
        params_json=_json(record.params),
        form=record.form,
        seconds=record.seconds,
        size_bytes=record.size_bytes,
        parameters=record.parameters,
        zeros=record.zeros,
        quality=None if record.quality is None else _quality(record.quality),
        notes=record.notes,
    )


def _quality(quality: Quality) -> pb.Quality:
    return pb.Quality(**quality.model_dump(exclude={"text_sha256"}))


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
