"""Builds by real child processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from artifacts.digest import sha256_file
from artifacts.manifest import canonical_json
from artifacts.protocol import BuildFailed, Built, StageBegun, StageMeasured
from artifacts.session import Row
from artifacts.session_factory import open_session
from artifacts.store import Store

if TYPE_CHECKING:
    from tests.optimizers.conftest import BuiltVariants


@pytest.mark.parametrize("variant", ["baseline", "int4", "int8", "lean"])
def test_a_build_ends_with_exactly_one_final_event(built: BuiltVariants, variant: str) -> None:
    """The parent can rely on the last line being the only one that ends the build."""
    events = built.events[variant]
    finals = [event for event in events if isinstance(event, Built | BuildFailed)]
    assert finals == [events[-1]]
    assert isinstance(events[-1], Built)


def test_every_step_begins_once_and_every_stage_is_measured(built: BuiltVariants) -> None:
    """The index counts all steps, and each stage and the export come with their figures."""
    begun = [event for event in built.events["lean"] if isinstance(event, StageBegun)]
    assert [event.stage for event in begun] == ["fetch", "prune", "export", "quantize", "publish"]
    assert [event.index for event in begun] == list(range(5))
    assert {event.count for event in begun} == {5}
    measured = [event.record for event in built.events["lean"] if isinstance(event, StageMeasured)]
    assert [record.stage for record in measured] == ["prune", "export", "quantize"]
    assert all(record.quality is not None for record in measured)
    assert built.manifest("lean").lineage == tuple(measured)


def test_variants_share_the_export_of_the_original(built: BuiltVariants) -> None:
    """int4 and int8 both begin with the export that the baseline left, but not with lean's."""
    for variant, reused in {"baseline": False, "int4": True, "int8": True, "lean": False}.items():
        (export,) = (
            event.reused
            for event in built.events[variant]
            if isinstance(event, StageBegun) and event.stage == "export"
        )
        assert export is reused


def test_quality_falls_with_what_is_taken_away(built: BuiltVariants) -> None:
    """The float32 graph is the original to rounding; the others differ by what they lost."""
    kl = {
        name: built.manifest(name).lineage[-1].quality.kl_mean  # type: ignore[union-attr]
        for name in ("baseline", "int8", "int4", "lean")
    }
    assert kl["baseline"] < 1e-5
    assert kl["baseline"] < kl["int8"] < kl["int4"] < kl["lean"] < 1


def test_figures_name_the_text_that_they_were_measured_on(
    built: BuiltVariants, evaluation: Path
) -> None:
    """Another text under the same recipe would otherwise seem to have these figures."""
    for record in built.manifest("lean").lineage:
        assert record.quality is not None
        assert record.quality.text_sha256 == sha256_file(evaluation)


def test_perplexity_is_told_on_a_users_text(built: BuiltVariants) -> None:
    """On the user's text every stage has its perplexity beside the original's."""
    quality = built.manifest("int4").lineage[-1].quality
    assert quality is not None
    assert quality.perplexity is not None
    assert quality.original_perplexity is not None
    assert quality.perplexity == pytest.approx(quality.original_perplexity, rel=0.1)
    assert quality.documents > 5
    assert quality.positions > 1000


def test_sizes_fall_with_the_bits(built: BuiltVariants) -> None:
    """Fewer bits make a smaller artifact."""
    sizes = [
        built.store.open(built.manifest(name).digest).path("model.onnx.data").stat().st_size
        for name in ("baseline", "int8", "int4")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 0.4 * sizes[0]


def test_pruned_weights_are_still_zero_in_the_artifact(built: BuiltVariants) -> None:
    """Half of the blocks' weights are zero in every form, the quantized one included."""
    prune, export, quantize = built.manifest("lean").lineage
    assert prune.zeros is not None
    assert prune.parameters is not None
    assert 0.3 * prune.parameters < prune.zeros <= 0.5 * prune.parameters
    assert export.zeros == prune.zeros
    assert quantize.zeros is not None
    assert quantize.zeros >= prune.zeros


@pytest.mark.parametrize("variant", ["baseline", "int4", "int8", "lean"])
def test_artifacts_serve_in_place(built: BuiltVariants, variant: str) -> None:
    """A stored artifact is loaded from where it lies and gives finite logits."""
    stored = built.store.open(built.manifest(variant).digest, verify=True)
    session = open_session(
        stored.path("model.onnx"), stored.manifest.graph, slots=1, max_length=32, threads=1
    )
    logits = session.step([Row(0, 0, np.arange(1, 9, dtype=np.int64), 8)]).logits
    assert logits.shape == (8, 256)
    assert np.isfinite(logits).all()


def test_an_artifact_has_all_that_serving_needs(built: BuiltVariants) -> None:
    """Graph, weights, tokenizer and configuration are there, and no path of this machine."""
    manifest = built.manifest("lean")
    names = {entry.name for entry in manifest.files}
    assert names >= {"model.onnx", "model.onnx.data", "tokenizer.json", "config.json"}
    assert manifest.generation.eos_token_ids == (0,)
    assert manifest.model.id == "tiny-llama"
    assert b"/" not in canonical_json(manifest.model_dump(mode="json")["chain"])
    assert {"torch", "onnxruntime"} <= manifest.libraries.keys()


def test_a_found_artifact_is_not_built_again(built: BuiltVariants, tiny_llama_folder: Path) -> None:
    """Plan finds it, and a build that is asked for all the same ends at once."""
    plan = built.child.plan(str(tiny_llama_folder), {"again": []})
    assert plan.variants["again"].artifact == built.manifest("baseline").digest
    events = built.child.build(str(tiny_llama_folder), plan.variants["again"])
    assert events == [Built(artifact=built.manifest("baseline").digest)]


def test_a_damaged_artifact_is_built_again(
    built: BuiltVariants, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """A build that finds its artifact damaged makes it anew from what is left."""
    root = tmp_path / "store"
    shutil.copytree(built.store.root, root)
    digest = built.manifest("int4").digest
    damaged = Store(root).open(digest).path("model.onnx.data")
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    child = type(built.child)(root)
    events = child.build(str(tiny_llama_folder), built.plan.variants["int4"])
    assert events[-1] == Built(artifact=digest)
    assert Store(root).open(digest, verify=True).manifest.digest == digest


def test_a_changed_source_is_not_built_under_the_old_recipe(
    built: BuiltVariants, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """A folder that changes between plan and build fails with its reason and its field."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_llama_folder, copy)
    child = type(built.child)(tmp_path / "store")
    planned = child.plan(str(copy), {"v": []}).variants["v"]
    (copy / "generation_config.json").write_text('{"eos_token_id": 1}')
    (failed,) = child.build(str(copy), planned)[1:]
    assert isinstance(failed, BuildFailed)
    assert failed.code == "recipe_changed"
    assert failed.path == "model"


def test_a_request_that_is_no_request_fails_as_one(built: BuiltVariants) -> None:
    """Nonsense on standard input is answered in the protocol's words too."""
    planned = built.plan.variants["baseline"]
    (failed,) = built.child.build("demo", planned, surprise=1)
    assert isinstance(failed, BuildFailed)
    assert failed.code == "request"
