"""What the API side may know of variants: frozen views, and where to look them up.

Owns the words between whoever runs the variants' lifecycle and whoever answers requests. Views
are values: a change of state is a new view under the same name. Knows nothing of how a variant is
built or loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from artifacts.host_figures import HostFigures
from artifacts.manifest import Manifest
from artifacts.tokenizer import Tokenizer
from server.budget import Limit
from server.chat_template import ChatTemplate
from server.drafts import Drafts
from server.traffic import Shadow


class VariantState(StrEnum):
    """Where a variant is on its way to serving."""

    PENDING = "pending"
    BUILDING = "building"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class VariantLimits:
    """What a loaded variant can take.

    Attributes:
        max_length: Tokens of one sequence, prompt and completion together.
        slots: Sequences that run at the same time.
        kv_budget_tokens: Reserved tokens over all running sequences.
        max_waiting: Accepted requests that may wait for a slot.
    """

    max_length: int
    slots: int
    kv_budget_tokens: int
    max_waiting: int


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a variant's build is; ``fraction`` is 0..1 within the running stage."""

    stage: str = ""
    stage_index: int = 0
    stage_count: int = 0
    fraction: float = 0.0
    elapsed_s: float = 0.0
    message: str = ""


class BudgetState(StrEnum):
    """How an artifact stands to its budget."""

    WITHIN = "within"
    EXCEEDED = "exceeded"
    UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class BudgetView:
    """How a variant stands to its budget.

    Attributes:
        state: Of the artifact that serves, or that is refused.
        limits: Those that are set, by name.
        notes: What was over a limit, also before a rollback, or why it could not be judged.
        rolled_back_stages: How many stages at the end of the configured chain are left out.
    """

    state: BudgetState
    limits: Mapping[Limit, float]
    notes: tuple[str, ...] = ()
    rolled_back_stages: int = 0


@dataclass(frozen=True, slots=True)
class VariantView:
    """One variant at one moment.

    ``manifest``, ``tokenizer``, ``limits`` and ``artifact`` are set when ``state`` is READY (the
    manifest and artifact also before, once they are known); ``error`` when it is FAILED.

    Attributes:
        name: Its key in the config.
        state: Where it is on its way to serving.
        chain: The normalised chain, one ``{stage: parameters}`` per stage.
        recipe: Digest of the recipe; empty while unknown.
        artifact: Digest of the artifact.
        manifest: The artifact's manifest.
        tokenizer: The artifact's tokenizer.
        template: The model's chat template, if it has one.
        limits: What it can take.
        progress: How far its build is.
        error: Why it failed: one message for the user, with the remedy.
        weight: Its share of the traffic, 0 when ``traffic`` does not name it.
        figures: What was measured of the artifact on this machine.
        budget: How it stands to its budget; None when it has none, or is not there yet.
        drafts: Where its drafted tokens come from, when it serves with any.
    """

    name: str
    state: VariantState
    chain: tuple[Mapping[str, Any], ...] = ()
    recipe: str = ""
    artifact: str | None = None
    manifest: Manifest | None = None
    tokenizer: Tokenizer | None = None
    limits: VariantLimits | None = None
    progress: BuildProgress | None = None
    error: str | None = None
    weight: float = 0.0
    figures: HostFigures | None = None
    budget: BudgetView | None = None
    template: ChatTemplate | None = None
    drafts: Drafts | None = None

    @property
    def is_unmeasured(self) -> bool:
        """Whether there is an artifact of which nobody knows yet what it lost."""
        return self.manifest is not None and self.manifest.quality is None


class Catalog(Protocol):
    """All configured variants. Read on the event loop only."""

    @property
    def default(self) -> str:
        """Name of the first variant of the config."""
        ...

    @property
    def traffic(self) -> Mapping[str, float]:
        """Weight of each variant that ``traffic`` names; empty when it is not configured."""
        ...

    @property
    def shadow(self) -> Shadow | None:
        """Who is judged on what others answer, if anybody is."""
        ...

    def names(self) -> tuple[str, ...]:
        """All names, in the order of the config."""
        ...

    def get(self, name: str) -> VariantView | None:
        """The variant as it is now, or None when there is none of this name."""
        ...
