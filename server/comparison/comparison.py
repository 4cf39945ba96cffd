"""A whole comparison: from a config whose artifacts are built to a report, and to the store.

Owns which variant is the baseline and what is kept where. Knows nothing of a terminal, or of how
any part does its work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from artifacts import machine as resources
from artifacts.errors import BugError
from artifacts.host_figures import Figure, HostFigures, write_figures
from artifacts.layout import Layout
from artifacts.manifest import Quality
from server.catalog import VariantView
from server.comparison import report_html, report_json, report_markdown
from server.comparison.divergence import DivergenceSettings
from server.comparison.figures import Subject, VariantFigures, figures
from server.comparison.findings import findings
from server.comparison.machine import this_machine
from server.comparison.report import Report
from server.comparison.rounds import Taken, take_rounds
from server.comparison.speed import QUICK, SpeedSettings
from server.comparison.statistics import Estimate
from server.comparison.turn import ServerTurns
from server.config.fields import Config
from server.errors import ServerError

ROUNDS = 5
QUICK_ROUNDS = 3
_QUICK_TEXTS = DivergenceSettings(prompts=8, new_tokens=32)


class NothingMeasuredError(ServerError):
    """No variant could be built or measured, so there is nothing to report."""

    code = "nothing_measured"


@dataclass(frozen=True, slots=True)
class ComparisonRun:
    """What is compared, and how.

    Attributes:
        config: Whose variants; its store holds their artifacts.
        views: The variants as their build left them, in the order of the config.
        breaches: Of each variant's budget, one sentence each.
        rounds: How many.
        quick: Take seconds instead of minutes.
    """

    config: Config
    views: Sequence[VariantView]
    breaches: Mapping[str, tuple[str, ...]]
    rounds: int
    quick: bool

    async def run(self, begun: Callable[[str, int, int], None]) -> Report:
        """Measure, until done or cancelled, and judge.

        Args:
            begun: Told of each turn: the variant, its number from 0, and how many there are.

        Raises:
            NothingMeasuredError: Nothing was built, or nothing was measured.
        """
        began = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        built = baseline_first([view for view in self.views if view.manifest is not None])
        failed = {view.name: view.error or "" for view in self.views if view.manifest is None}
        if not built:
            raise NothingMeasuredError("No variant could be built, so none can be compared.")
        turns = ServerTurns(
            self.config,
            QUICK if self.quick else SpeedSettings(),
            _QUICK_TEXTS if self.quick else DivergenceSettings(),
        )
        names = [view.name for view in built]
        taken = await take_rounds(names, self.rounds, turns.take, begun)
        if not any(taken.speeds.values()):
            why = " ".join(f"{name}: {error}" for name, error in taken.failures.items())
            raise NothingMeasuredError(f"No round was finished, so nothing is reported. {why}")
        return self._report(built, taken, began, failed)

    def _report(
        self,
        built: Sequence[VariantView],
        taken: Taken,
        began: str,
        failed: Mapping[str, str],
    ) -> Report:
        variants = figures([self._subject(view, taken) for view in built])
        baseline = variants[0]
        source = baseline.manifest.model
        return Report(
            model=source.id,
            revision=source.revision,
            text=_text(self.config, baseline.manifest.quality),
            machine=this_machine(),
            began=began,
            rounds=self.rounds,
            complete=taken.complete,
            quick=self.quick,
            variants=variants,
            findings={variant.name: findings(variant, baseline) for variant in variants[1:]},
            failed=failed,
        )

    def _subject(self, view: VariantView, taken: Taken) -> Subject:
        if view.manifest is None:
            raise BugError(f"Variant {view.name!r} was not built.")
        return Subject(
            name=view.name,
            artifact=view.artifact or view.manifest.digest,
            manifest=view.manifest,
            speeds=taken.speeds[view.name],
            divergence=taken.divergence.get(view.name),
            breaches=self.breaches.get(view.name, ()),
            failure=taken.failures.get(view.name),
        )


def baseline_first(views: Sequence[VariantView]) -> list[VariantView]:
    """The variant with the empty chain before all others; where there is none, the first stays."""
    plain = [view for view in views if not view.chain]
    return [*plain[:1], *(view for view in views if view not in plain[:1])]


def write(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write all forms of a report.

    Raises:
        OSError: The folder cannot be written.
    """
    forms = {
        "report.json": report_json.render,
        "report.md": report_markdown.render,
        "report.html": report_html.render,
    }
    for name, render in forms.items():
        (folder / name).write_text(render(report), encoding="utf-8")
    return tuple(folder / name for name in forms)


def keep(report: Report, config: Config) -> None:
    """Keep every variant's figures in the store, for the server on this machine to show.

    Raises:
        StoreError: The store cannot be written.
    """
    layout = Layout(Path(config.store).expanduser())
    host = report.machine.host(config.engine.threads or resources.usable_cores())
    for variant in report.variants:
        if variant.rounds:
            kept = HostFigures(
                host=host,
                measured=report.began,
                rounds=len(variant.rounds),
                disturbed_rounds=variant.disturbed,
                speeds=_kept(variant.speeds) | _percentiles(variant),
                quality=_kept(variant.quality),
            )
            write_figures(layout, variant.artifact, kept)


def _kept(estimates: Mapping[str, Estimate]) -> dict[str, Figure]:
    return {
        key: Figure(value=estimate.value, low=estimate.low, high=estimate.high)
        for key, estimate in estimates.items()
    }


def _percentiles(variant: VariantFigures) -> dict[str, Figure]:
    """``time_to_first_token_p50_seconds`` and its like, where there were enough samples."""
    series = {
        "time_to_first_token": variant.first_token_s,
        "inter_token": variant.inter_token_s,
    }
    return {
        f"{name}_p{p * 100:g}_seconds": Figure(value=value)
        for name, percentiles in series.items()
        for p, value in percentiles.items()
        if value is not None
    }


def _text(config: Config, quality: Quality | None) -> str:
    """What quality was measured on, in words."""
    if quality is None:
        return "no text"
    amount = f"{quality.documents} documents, {quality.positions:,} positions"
    if quality.text_sha256 is None:
        return f"text that the original model wrote itself ({amount})"
    name = "" if config.evaluation is None else f"{Path(config.evaluation.text).name}, "
    return f"the evaluation text ({name}{amount}, SHA-256 {quality.text_sha256[:12]})"
