"""Which variant answers a request, and whether it can now.

Owns the sentences for unknown names and for variants that do not serve. Knows nothing of what is
asked of the variant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from artifacts.errors import BugError
from artifacts.manifest import Manifest
from artifacts.tokenizer import Tokenizer
from server.catalog import Catalog, VariantLimits, VariantState, VariantView
from server.chat_template import ChatTemplate
from server.errors import UnavailableError, UnknownVariantError
from server.routing import choose

_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Serving:
    """What a variant that is ready answers with."""

    name: str
    artifact: str
    manifest: Manifest
    tokenizer: Tokenizer
    limits: VariantLimits
    template: ChatTemplate | None = None


class Selection:
    """Looks variants up in the catalog."""

    def __init__(self, catalog: Catalog, draw: Callable[[], float]) -> None:
        self._catalog = catalog
        self._draw = draw

    def named(self, name: str) -> VariantView:
        """The variant of this name; the default for an empty one.

        Raises:
            UnknownVariantError: There is none.
        """
        view = self._catalog.get(name or self._catalog.default)
        if view is None:
            known = ", ".join(self._catalog.names())
            shown = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"
            raise UnknownVariantError(f"variant: {shown!r} is unknown; use one of: {known}.")
        return view

    def routed(self, name: str, key: str) -> VariantView:
        """The variant for a generation: the named one, or by ``traffic`` among those ready."""
        if name or not self._catalog.traffic:
            return self.named(name)
        return self.named(choose(self._weights(), key, self._draw) or "")

    def likeliest(self) -> VariantView:
        """The variant that most of what is routed goes to now; ready if any of them is."""
        weights = self._weights()
        return self.named(max(weights, key=weights.__getitem__, default=""))

    def _weights(self) -> dict[str, float]:
        """Of those that take routed traffic and are ready."""
        takers = {name: weight for name, weight in self._catalog.traffic.items() if weight > 0}
        ready = {name for name in takers if self.named(name).state is VariantState.READY}
        # While none is ready the weights still say whose state is worth telling.
        return {name: takers[name] for name in ready or takers}


def require_serving(view: VariantView) -> Serving:
    """What a ready variant answers with.

    Raises:
        UnavailableError: It is not ready; the sentence says what it is doing.
    """
    if view.state is not VariantState.READY:
        raise UnavailableError(_why_not(view))
    if view.manifest is None or view.tokenizer is None or view.limits is None:
        raise BugError(f"Variant {view.name!r} is ready without manifest, tokenizer or limits.")
    return Serving(
        name=view.name,
        artifact=view.artifact or view.manifest.digest,
        manifest=view.manifest,
        tokenizer=view.tokenizer,
        limits=view.limits,
        template=view.template,
    )


def require_tokenizer(view: VariantView) -> Tokenizer:
    """The variant's tokenizer, which may be there before the variant serves."""
    if view.tokenizer is None:
        raise UnavailableError(_why_not(view))
    return view.tokenizer


def _why_not(view: VariantView) -> str:
    """Why a variant does not serve, and what to do."""
    sentence = f"variant {view.name!r} does not serve: it is {view.state.value}"
    progress = view.progress
    if view.state is VariantState.FAILED:
        return f"{sentence} ({view.error or 'no reason given'}); use another variant."
    if progress is not None and progress.stage:
        sentence += (
            f" (stage {progress.stage}, {progress.stage_index + 1} of {progress.stage_count}, "
            f"{progress.fraction:.0%}, {progress.elapsed_s:.0f} s so far)"
        )
    return f"{sentence}; try again later, GetVariant shows its progress."
