"""Views of variants into messages: chain, lineage with its measures, limits, progress."""

from __future__ import annotations

import json
from collections.abc import Mapping

from artifacts.forms import reproducible
from artifacts.host_figures import Figure, HostFigures
from artifacts.manifest import Manifest, Quality, StageRecord
from protos import inference_pb2 as pb
from server.catalog import BudgetState, VariantState, VariantView

_STATES = {
    VariantState.PENDING: pb.VARIANT_STATE_PENDING,
    VariantState.BUILDING: pb.VARIANT_STATE_BUILDING,
    VariantState.LOADING: pb.VARIANT_STATE_LOADING,
    VariantState.READY: pb.VARIANT_STATE_READY,
    VariantState.FAILED: pb.VARIANT_STATE_FAILED,
    VariantState.UNLOADED: pb.VARIANT_STATE_UNLOADED,
}
_BUDGETS = {
    BudgetState.WITHIN: pb.BUDGET_STATE_WITHIN,
    BudgetState.EXCEEDED: pb.BUDGET_STATE_EXCEEDED,
    BudgetState.UNVERIFIED: pb.BUDGET_STATE_UNVERIFIED,
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
    if (budget := view.budget) is not None:
        message.budget.state = _BUDGETS[budget.state]
        for field, limit in budget.limits.items():
            message.budget.limits[field] = limit
        message.budget.notes.extend(budget.notes)
        message.budget.rolled_back_stages = budget.rolled_back_stages
    if (drafts := view.drafts) is not None:
        message.speculation.method = drafts.method
        message.speculation.variant = drafts.variant
        message.speculation.max_draft_tokens = drafts.max_draft_tokens
        message.speculation.adaptive = drafts.adaptive
    if view.manifest is not None:
        _fill_manifest(message, view.manifest)
    if view.figures is not None:
        message.host_figures.CopyFrom(_host_figures(view.figures))
    return message


def _host_figures(figures: HostFigures) -> pb.HostFigures:
    return pb.HostFigures(
        **figures.host.model_dump(),
        measured=figures.measured,
        rounds=figures.rounds,
        disturbed_rounds=figures.disturbed_rounds,
        speeds=_figures(figures.speeds),
        quality=_figures(figures.quality),
    )


def _figures(figures: Mapping[str, Figure]) -> dict[str, pb.Figure]:
    return {measure: pb.Figure(**figure.model_dump()) for measure, figure in figures.items()}


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
    forms = manifest.graph.forms
    message.forms = "" if forms is None else forms.choice
    message.reproducible = reproducible(forms)
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
    return pb.Quality(**quality.model_dump(exclude={"text_sha256", "by_document"}))


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
