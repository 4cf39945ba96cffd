"""The words that the server and its optimizer child exchange, as frozen values.

``python -m optimizers plan`` reads one ``PlanRequest`` (JSON) on stdin and writes one
``PlanResponse``. ``python -m optimizers build`` reads one ``BuildRequest`` line, then writes one
``BuildEvent`` per line, the last of which is ``Built`` or ``BuildFailed``; ``judge`` reads a
``JudgeRequest``, and its last is ``Judged`` or ``BuildFailed``. Both exit when their stdin is
closed. Knows nothing of how either side does its work.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from artifacts.manifest import Frozen, Quality, StageRecord


class Texts(Frozen):
    """A file of texts: ``.jsonl`` with a ``text`` field per line, or ``.txt``."""

    text: str


class PlanRequest(Frozen):
    """What a config says about models and chains; unvalidated below ``variants``.

    Without a store, chains are judged, no artifact is looked up and nothing is kept.
    """

    model: str
    revision: str | None = None
    calibration: Texts | None = None
    evaluation: Texts | None = None
    variants: dict[str, Any]
    store: str | None = None
    offline: bool = False


class FieldError(Frozen):
    """One field that is wrong: where, why, what to do, and the nearest valid name."""

    path: str
    message: str
    remedy: str = ""
    nearest: str | None = None


class PlannedVariant(Frozen):
    """A variant whose chain is valid; ``artifact`` is set when the store already holds it.

    ``streams`` tells whether a build that does not measure goes from the model's weights to those
    of the artifact in one pass, which takes seconds where all steps take minutes.
    """

    recipe: str
    chain: tuple[dict[str, dict[str, Any]], ...]
    artifact: str | None = None
    warnings: tuple[str, ...] = ()
    streams: bool = False


class PlanResponse(Frozen):
    """All errors at once; ``variants`` holds those without error."""

    errors: tuple[FieldError, ...] = ()
    revision: str | None = None
    variants: dict[str, PlannedVariant] = {}


class BuildRequest(Frozen):
    """Build one variant into the store.

    Without ``measure`` the artifact is published at once, and ``judge`` is to give it its figures;
    a chain that ``streams`` is then built without anything in between. What an object store, the
    ``remote``, has already is fetched from there; with ``publish`` the artifact ends up there.
    """

    model: str
    revision: str | None = None
    calibration: Texts | None = None
    evaluation: Texts | None = None
    variant: str
    chain: tuple[dict[str, dict[str, Any]], ...]
    recipe: str
    store: str
    remote: str | None = None
    publish: bool = False
    offline: bool = False
    threads: int | None = None
    optimum_python: str | None = None
    measure: bool = True


class JudgeRequest(Frozen):
    """Measure a stored artifact of ``variant`` against the original ``model``, on this machine."""

    model: str
    revision: str | None = None
    evaluation: Texts | None = None
    variant: str
    artifact: str
    store: str
    offline: bool = False
    threads: int | None = None


class StageBegun(Frozen):
    """A stage (or the export, or measuring) starts; index counts from 0."""

    event: Literal["stage_begun"] = "stage_begun"
    stage: str
    index: int
    count: int
    reused: bool = False


class Progress(Frozen):
    """How far the running stage is, 0..1, with a word on what it does."""

    event: Literal["progress"] = "progress"
    stage: str
    fraction: float
    message: str = ""


class StageMeasured(Frozen):
    """A stage is done and, unless that was put off, measured."""

    event: Literal["stage_measured"] = "stage_measured"
    record: StageRecord


class Built(Frozen):
    """The artifact lies in the store."""

    event: Literal["built"] = "built"
    artifact: str


class Judged(Frozen):
    """The artifact is measured."""

    event: Literal["judged"] = "judged"
    quality: Quality


class BuildFailed(Frozen):
    """There is no artifact, or no figures; ``path`` names the config field that is at fault."""

    event: Literal["failed"] = "failed"
    code: str
    message: str
    path: str = ""
    remedy: str = ""


BuildEvent = Annotated[
    StageBegun | Progress | StageMeasured | Built | Judged | BuildFailed,
    Field(discriminator="event"),
]

build_event: TypeAdapter[BuildEvent] = TypeAdapter(BuildEvent)
