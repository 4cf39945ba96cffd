"""ListVariants, GetVariant, Tokenize and Detokenize over real gRPC."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from artifacts.manifest import Forms, Manifest
from protos import inference_pb2 as pb
from server.catalog import BudgetState, BudgetView, BuildProgress, VariantState
from server.drafts import DraftMethod, Drafts

if TYPE_CHECKING:
    from artifacts.tokenizer import Tokenizer
    from tests.server.conftest import Bench


async def test_a_ready_variant_shows_all_that_its_manifest_has(
    bench: Bench, stub: Any, manifest: Manifest
) -> None:
    """Chain, digests, lineage with measures, size, limits, export and libraries."""
    bench.catalog.change("int8", weight=0.25)
    variant = await stub.GetVariant(pb.GetVariantRequest(variant="int8"))
    assert (
        variant.name,
        variant.is_default,
        variant.state,
    ) == ("int8", False, pb.VARIANT_STATE_READY)
    assert json.loads(variant.chain_json) == [{"quantize": {"bits": 8}}]
    assert (manifest.recipe, manifest.digest) == (variant.recipe, variant.artifact)
    assert pb.Model(id="demo", revision="r1", architecture="LlamaForCausalLM") == variant.model
    assert (1000, 0.25, manifest.created) == (
        variant.size_bytes,
        variant.traffic_weight,
        variant.created,
    )
    limits = pb.Limits(max_length=128, slots=4, kv_budget_tokens=512, max_waiting=2)
    assert limits == variant.limits
    assert manifest.libraries == dict(variant.libraries)
    assert (variant.export.exporter, variant.export.tokens_compared) == ("mobius", 64)
    assert not variant.HasField("progress")
    export, quantize = variant.lineage
    assert (
        export.stage,
        export.HasField("quality"),
        export.HasField("parameters"),
    ) == ("export", False, False)
    assert (
        quantize.method,
        quantize.params_json,
        quantize.form,
        quantize.seconds,
        quantize.size_bytes,
        quantize.parameters,
    ) == ("weight_only", '{"bits":8}', "onnx", 2.5, 1000, 500)
    assert quantize.HasField("zeros")
    assert list(quantize.notes) == ["lm_head kept"]
    quality = quantize.quality
    assert (
        quality.kl_mean,
        quality.kl_p99,
        quality.top1_agreement,
        quality.perplexity,
        quality.documents,
        quality.positions,
        quality.isa,
    ) == (0.01, 0.2, 0.98, 12.5, 8, 4096, "avx512_vnni")
    assert not quality.HasField("original_perplexity")
    assert list(variant.audit) == ["MatMul (first and 1 more): 4.2 MB"]
    assert (variant.forms, variant.reproducible) == ("by_role", True)


async def test_what_is_not_reproducible_says_so(
    bench: Bench, stub: Any, manifest: Manifest
) -> None:
    """Where the size of a step chooses the form, a result depends on who else is served."""
    forms = Forms(choice="adaptive", prompts="c" * 64, rows=8)
    graph = manifest.graph.model_copy(update={"forms": forms})
    bench.catalog.change("int8", manifest=manifest.model_copy(update={"graph": graph}))
    variant = await stub.GetVariant(pb.GetVariantRequest(variant="int8"))
    assert (variant.forms, variant.HasField("reproducible")) == ("adaptive", True)
    assert not variant.reproducible


async def test_figures_of_this_machine_are_shown_with_their_intervals(stub: Any) -> None:
    """Speeds and quality by measure; an end that is not known is not set."""
    variant = await stub.GetVariant(pb.GetVariantRequest(variant="int8"))
    figures = variant.host_figures
    assert (figures.processor, figures.isa, figures.cores) == ("Example 9000", "x86_64-avx2", 2)
    assert (figures.measured, figures.rounds, figures.disturbed_rounds) == (
        "2026-11-24T12:00:00Z",
        5,
        1,
    )
    decoding = figures.speeds["decode_1_tokens_per_second"]
    assert (decoding.value, decoding.low, decoding.high) == (96.5, 81.0, 114.8)
    assert not figures.speeds["inter_token_p50_seconds"].HasField("low")
    assert figures.quality["kl_mean"].high == 0.012


async def test_every_field_of_a_variant_is_filled(bench: Bench, stub: Any) -> None:
    """A field added to the .proto and forgotten here would show."""
    bench.catalog.change(
        "int8",
        weight=0.5,
        error="a warning",
        progress=BuildProgress("x", 1, 2),
        budget=BudgetView(BudgetState.WITHIN, {}),
        drafts=Drafts(DraftMethod.PROMPT_LOOKUP, "", 8),
    )
    variant = await stub.GetVariant(pb.GetVariantRequest(variant="int8"))
    filled = {field.name for field, _ in variant.ListFields()}
    assert {field.name for field in pb.Variant.DESCRIPTOR.fields} - filled == {"is_default"}


async def test_an_empty_name_is_the_default(stub: Any) -> None:
    """GetVariant without a name gives the first variant of the config."""
    variant = await stub.GetVariant(pb.GetVariantRequest())
    assert (variant.name, variant.is_default) == ("baseline", True)


async def test_listing_keeps_the_order_and_shows_every_state(bench: Bench, stub: Any) -> None:
    """Variants that do not serve are listed too, with progress or error."""
    progress = BuildProgress("prune", 1, 3, 0.5, 2.0, "layer 3")
    bench.catalog.change("slow", progress=progress)
    listed = (await stub.ListVariants(pb.ListVariantsRequest())).variants
    assert [variant.name for variant in listed] == ["baseline", "int8", "slow", "broken"]
    assert [variant.name for variant in listed if variant.is_default] == ["baseline"]
    shown = pb.BuildProgress(
        stage="prune",
        stage_index=1,
        stage_count=3,
        fraction=0.5,
        elapsed_seconds=2.0,
        message="layer 3",
    )
    assert shown == listed[2].progress
    assert (listed[3].error, listed[3].HasField("limits")) == ("the disk is full", False)


@pytest.mark.parametrize("state", BudgetState)
async def test_a_budget_is_shown_with_its_limits(
    bench: Bench, stub: Any, state: BudgetState
) -> None:
    """What is allowed, how it came out, and what was left out for it."""
    view = BudgetView(state, {"kl_mean": 0.25}, ("kl_mean is 1.",), rolled_back_stages=2)
    bench.catalog.change("int8", budget=view)
    budget = (await stub.GetVariant(pb.GetVariantRequest(variant="int8"))).budget
    assert pb.BudgetState.Name(budget.state) == f"BUDGET_STATE_{state.name}"
    assert dict(budget.limits) == {"kl_mean": 0.25}
    assert (list(budget.notes), budget.rolled_back_stages) == (["kl_mean is 1."], 2)
    without = await stub.GetVariant(pb.GetVariantRequest(variant="baseline"))
    assert not without.HasField("budget")


@pytest.mark.parametrize("state", VariantState)
async def test_every_state_has_its_word(bench: Bench, stub: Any, state: VariantState) -> None:
    """The states of the catalog and of the .proto are the same words."""
    bench.catalog.change("slow", state=state)
    variant = await stub.GetVariant(pb.GetVariantRequest(variant="slow"))
    assert f"VARIANT_STATE_{state.name}" == pb.VariantState.Name(variant.state)


@pytest.mark.parametrize("text", ["def f(x):\n    return x", "né 東京 🎉", "", "word " * 3000])
async def test_tokens_go_there_and_back(
    stub: Any, byte_level_tokenizer: Tokenizer, text: str
) -> None:
    """Tokenize gives the tokenizer's ids and spellings, Detokenize the text; long ones as well."""
    tokenized = await stub.Tokenize(pb.TokenizeRequest(text=text))
    assert byte_level_tokenizer.encode(text) == tuple(tokenized.token_ids)
    assert [byte_level_tokenizer.token(i) for i in tokenized.token_ids] == list(tokenized.tokens)
    back = await stub.Detokenize(pb.DetokenizeRequest(token_ids=tokenized.token_ids))
    assert text == back.text


async def test_special_tokens_are_skipped_unless_wanted(stub: Any) -> None:
    """Detokenize hides special tokens by default."""
    ids = [70, 0]
    hidden = await stub.Detokenize(pb.DetokenizeRequest(token_ids=ids))
    shown = await stub.Detokenize(pb.DetokenizeRequest(token_ids=ids, skip_special_tokens=False))
    assert hidden.text + "<|endoftext|>" == shown.text


async def test_a_tokenizer_may_serve_before_its_variant(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer
) -> None:
    """Text methods work as soon as there is a tokenizer."""
    bench.catalog.change("slow", tokenizer=byte_level_tokenizer)
    answer = await stub.Tokenize(pb.TokenizeRequest(text="hi", variant="slow"))
    assert byte_level_tokenizer.encode("hi") == tuple(answer.token_ids)
