"""Figures of quality belong to the text that they were measured on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from artifacts.digest import sha256_file
from artifacts.manifest import Manifest
from artifacts.protocol import BuildRequest, PlannedVariant, Texts
from server.catalog import VariantState, VariantView
from server.lifecycle import Lifecycle
from server.rpc.variants import variant_message
from server.telemetry import Telemetry
from server.variants import Variants

WARNING = "quality was measured on another text than evaluation.text"


@pytest.fixture
def measured_on(manifest: Manifest) -> Callable[[str | None], Manifest]:
    """The manifest, with its last figures measured on a text of this digest."""

    def make(digest: str | None) -> Manifest:
        *before, last = manifest.lineage
        assert last.quality is not None
        quality = last.quality.model_copy(update={"text_sha256": digest})
        lineage = (*before, last.model_copy(update={"quality": quality}))
        return manifest.model_copy(update={"lineage": lineage})

    return make


class _Store:
    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def open(self, _: str) -> Any:
        return self  # as far as a lifecycle that only builds looks at it


async def _warnings(manifest: Manifest, text: Path | None) -> list[str]:
    """What is said when an artifact is found in the store."""
    variants = Variants(["a"], {})
    lifecycle = Lifecycle(
        variants=variants,
        planned={"a": PlannedVariant(recipe="r", chain=(), artifact="found")},
        request=lambda name, planned: BuildRequest(
            model="m",
            variant=name,
            chain=planned.chain,
            recipe="r",
            store="/s",
            evaluation=None if text is None else Texts(text=str(text)),
        ),
        optimizer=None,  # type: ignore[arg-type]
        store=_Store(manifest),  # type: ignore[arg-type]
        load=None,
        post=lambda _: None,
        record=None,  # type: ignore[arg-type]
        step_tokens=32,
    )
    with capture_logs() as said:
        await lifecycle.run()
    assert [view.state for view in variants.views] == [VariantState.READY]
    return [entry["event"] for entry in said]


async def test_figures_of_another_text_are_told(
    measured_on: Callable[[str | None], Manifest], tmp_path: Path
) -> None:
    """The text was changed since: a store hit would show the old text's figures as the new's."""
    text = tmp_path / "text.txt"
    text.write_text("what is measured on by now")
    assert await _warnings(measured_on("0" * 64), text) == [WARNING]
    assert await _warnings(measured_on(sha256_file(text)), text) == []


async def test_nothing_is_said_where_nothing_is_known(
    measured_on: Callable[[str | None], Manifest], tmp_path: Path
) -> None:
    """No text is configured, or the artifact was measured on what the original wrote."""
    text = tmp_path / "text.txt"
    text.write_text("a text")
    assert await _warnings(measured_on("0" * 64), None) == []
    assert await _warnings(measured_on(None), text) == []


async def test_a_text_that_is_gone_costs_no_variant(
    measured_on: Callable[[str | None], Manifest], tmp_path: Path
) -> None:
    """What serves does not need it."""
    said = await _warnings(measured_on("0" * 64), tmp_path / "gone.txt")
    assert said == ["evaluation text cannot be read"]


def test_the_digest_is_no_figure(measured_on: Callable[[str | None], Manifest]) -> None:
    """Neither a measure of the metrics nor a field of the messages."""
    manifest = measured_on("0" * 64)
    telemetry = Telemetry("m")
    telemetry.add_variant("a")
    telemetry.describe("a", "d", manifest)
    measures = {
        sample.labels["measure"]
        for family in telemetry.registry.collect()
        for sample in family.samples
        if sample.name == "inference_variant_quality"
    }
    assert measures == {"kl_mean", "kl_p99", "top1_agreement", "perplexity"}
    view = VariantView("a", VariantState.READY, manifest=manifest)
    assert variant_message(view, is_default=True).lineage[-1].quality.kl_mean == 0.01
