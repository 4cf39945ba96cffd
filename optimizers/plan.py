"""``plan``: check everything that a config says about models and chains, and name the recipes.

Finds all errors at once and imports nothing heavy. Knows nothing of how anything is built.
"""

from __future__ import annotations

from artifacts import texts
from artifacts.errors import ArtifactError, TextError
from artifacts.protocol import FieldError, PlannedVariant, PlanRequest, PlanResponse
from artifacts.store import Store
from optimizers.errors import OptimizerError
from optimizers.recipe import recipe_digest
from optimizers.sources import Pinned, pin
from optimizers.spec import parse_variant
from optimizers.stage import Stage


def plan(request: PlanRequest, store: Store) -> PlanResponse:
    """Answer with the errors of all fields and the recipe of each variant without any."""
    errors: list[FieldError] = []
    warnings: tuple[str, ...] = ()
    source: Pinned | None = None
    try:
        source = pin(request.model, request.revision, layout=store.layout, offline=request.offline)
        warnings = source.warnings
    except (OptimizerError, ArtifactError) as error:
        errors.append(field_error(error, "model"))
    for field, given in (("calibration", request.calibration), ("evaluation", request.evaluation)):
        try:
            if given is not None:
                texts.check(given.text)
        except TextError as error:
            errors.append(field_error(error, f"{field}.text"))

    def pin_other(model: str, revision: str | None) -> str:
        return pin(model, revision, layout=store.layout, offline=request.offline).revision

    variants: dict[str, PlannedVariant] = {}
    for name, value in request.variants.items():
        chain = parse_variant(name, value)
        found = list(chain.errors)
        stages: list[Stage] = []
        for index, stage in enumerate(chain.stages if not found else ()):
            try:
                stages.append(stage.pinned(pin_other))
            except (OptimizerError, ArtifactError) as error:
                path = f"variants.{name}.chain[{index}].{stage.name}"
                found.append(field_error(error, path, prefix=path))
        errors += found
        if found or source is None:
            continue
        recipe = recipe_digest(source.revision, stages)
        variants[name] = PlannedVariant(
            recipe=recipe,
            chain=tuple(stage.as_item() for stage in stages),
            artifact=store.find(recipe),
            warnings=warnings,
        )
    return PlanResponse(
        errors=tuple(errors),
        revision=source.revision if source is not None else None,
        variants=variants,
    )


def field_error(
    error: OptimizerError | ArtifactError, path: str, *, prefix: str = ""
) -> FieldError:
    """Tell an error with the path of the field at fault."""
    own = error.path if isinstance(error, OptimizerError) else ""
    if prefix and own:
        own = f"{prefix}.{own}"
    return FieldError(path=own or path, message=str(error.args[0]), remedy=error.remedy)
