"""``plan``: check everything that a config says about models and chains, and name the recipes.

Finds all errors at once and imports nothing heavy. Knows nothing of how anything is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts import texts
from artifacts.errors import ArtifactError, StoreError
from artifacts.layout import storing
from artifacts.protocol import FieldError, PlannedVariant, PlanRequest, PlanResponse
from artifacts.store import Store
from optimizers.calibration import digest_of, text_of
from optimizers.errors import OptimizerError
from optimizers.recipe import recipe_digest
from optimizers.siblings import suggesting
from optimizers.sources import Pinned, pin
from optimizers.spec import chain_warnings, parse_variant
from optimizers.stage import Stage
from optimizers.streaming import can_stream


def plan(request: PlanRequest) -> PlanResponse:
    """Answer with the errors of all fields and the recipe of each variant without any."""
    errors: list[FieldError] = []
    warnings: tuple[str, ...] = ()
    source: Pinned | None = None
    store: Store | None = None
    with _noting(errors, "store"):
        store = None if request.store is None else _open_store(request.store)
    layout = None if store is None else store.layout
    with _noting(errors, "model"):
        source = pin(request.model, request.revision, layout=layout, offline=request.offline)
        warnings = source.warnings
    given_text = None if request.calibration is None else request.calibration.text
    calibration = ""
    with _noting(errors, "calibration.text"):
        calibration = digest_of(text_of(request.model, given_text))
    if request.evaluation is not None:
        with _noting(errors, "evaluation.text"):
            texts.check(request.evaluation.text)

    def pin_other(model: str, revision: str | None) -> str:
        return pin(model, revision, layout=layout, offline=request.offline).revision

    variants: dict[str, PlannedVariant] = {}
    for name, value in request.variants.items():
        chain = parse_variant(name, value)
        found = list(chain.errors)
        stages: list[Stage] = []
        for index, stage in enumerate(chain.stages if not found else ()):
            path = f"variants.{name}.chain[{index}].{stage.name}"
            with _noting(found, path, prefix=path):
                stages.append(stage.pinned(pin_other))
        errors += suggesting(found, request.model if source is None else source.id)
        if found or source is None:
            continue
        recipe = recipe_digest(source.revision, stages, calibration)
        artifact: str | None = None
        with _noting(errors, "store"):
            artifact = None if store is None else store.find(recipe)
        variants[name] = PlannedVariant(
            recipe=recipe,
            chain=tuple(stage.as_item() for stage in stages),
            artifact=artifact,
            warnings=(*warnings, *chain_warnings(stages)),
            streams=can_stream(stages),
        )
    return PlanResponse(
        errors=tuple(dict.fromkeys(errors)),
        revision=source.revision if source is not None else None,
        variants=variants,
    )


def _open_store(name: str) -> Store:
    """Give the store, made as far as it is missing.

    Raises:
        StoreError: It cannot be made, or there is no such place.
    """
    try:
        store = Store(Path(name).expanduser())
    except RuntimeError as error:
        raise StoreError(f"{name!r} is no folder: {error}", remedy="Check the path.") from error
    with storing(store.root):
        exists = store.layout.manifests.is_dir()
    if not exists:  # else it may as well be a read-only mount
        store.layout.create()
    return store


@contextmanager
def _noting(errors: list[FieldError], path: str, *, prefix: str = "") -> Iterator[None]:
    """Add what is wrong with the field at ``path`` to ``errors``, and go on."""
    try:
        yield
    except (OptimizerError, ArtifactError) as error:
        own = error.path if isinstance(error, OptimizerError) else ""
        if prefix and own:
            own = f"{prefix}.{own}"
        errors.append(FieldError(path=own or path, message=str(error.args[0]), remedy=error.remedy))
