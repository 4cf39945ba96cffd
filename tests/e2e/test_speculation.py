"""Speculative decoding on real servers: the same tokens, fewer steps, and told everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml

from protos import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from protos import inference_pb2 as pb
from server.comparison.server_process import ServerProcess

FUNCTION = """def total(values, start):
    result = start
    for value in values:
        if value is None:
            continue
        result += value
    return result
"""
PROMPT = f"{FUNCTION}\n\n{FUNCTION}\n\ndef total("
NEAR = 2e-3  # of two log-probabilities: what the order of float sums changes in float32


@pytest.fixture(scope="module")
def server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One model four times: plain, and with both ways of drafting, the drafter among them."""
    folder = tmp_path_factory.mktemp("speculation")
    config = folder / "config.yaml"
    content = {
        "model": "demo",
        "store": str(demo_store),
        "engine": {"slots": 4, "max_length": 512},
        "variants": {
            # Whether drafting pays is a matter of the machine, and of what else it does.
            "drafted": {
                "chain": [],
                "speculation": {"method": "draft", "variant": "int4", "adaptive": False},
            },
            "looked-up": {
                "chain": [],
                "speculation": {
                    "method": "prompt_lookup",
                    "max_draft_tokens": 5,
                    "adaptive": False,
                },
            },
            "plain": [],
            "int4": [{"quantize": {"method": "weight_only", "bits": 4, "block_size": 32}}],
        },
    }
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    with ServerProcess(config, stderr=folder / "server.log") as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def stub(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.target) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)


def complete(stub: Any, variant: str, **sampling: Any) -> pb.CompleteResponse:
    return stub.Complete(
        pb.GenerateRequest(
            variant=variant,
            text=PROMPT,
            sampling=pb.SamplingParameters(max_tokens=120, ignore_eos=True, logprobs=2, **sampling),
        )
    )


def agrees(plain: pb.CompleteResponse, fast: pb.CompleteResponse) -> int:
    """How many tokens are the same; behind them the two likeliest are as good as equal."""
    same = 0
    for one, other in zip(plain.logprobs, fast.logprobs, strict=True):
        if one.token_id != other.token_id:
            first, second = one.top
            assert first.logprob - second.logprob < NEAR, f"token {same} differs"
            break
        same += 1
    return same


@pytest.mark.parametrize("variant", ["drafted", "looked-up"])
def test_tokens_are_the_same_and_steps_are_fewer(stub: Any, variant: str) -> None:
    """Greedily, against the same artifact without drafts."""
    plain = complete(stub, "plain", temperature=0)
    fast = complete(stub, variant, temperature=0)
    assert agrees(plain, fast) >= 20
    usage = fast.finish.usage
    assert usage.completion_tokens == len(fast.token_ids) == 120
    assert usage.draft_tokens >= usage.accepted_tokens > 20
    assert plain.finish.usage.draft_tokens == 0


@pytest.mark.parametrize("variant", ["drafted", "looked-up"])
def test_a_seed_draws_the_same(stub: Any, variant: str) -> None:
    """Whatever was guessed: the same numbers choose from the same distribution."""
    plain = complete(stub, "plain", temperature=0.7, top_p=0.9, seed=3)
    fast = complete(stub, variant, temperature=0.7, top_p=0.9, seed=3)
    assert plain.token_ids[:20] == fast.token_ids[:20]


def test_variants_say_how_they_draft(stub: Any) -> None:
    """And one that does not says nothing."""
    told = stub.GetVariant(pb.GetVariantRequest(variant="drafted")).speculation
    assert (told.method, told.variant, told.max_draft_tokens) == ("draft", "int4", 8)
    assert not told.adaptive
    told = stub.GetVariant(pb.GetVariantRequest(variant="looked-up")).speculation
    assert (told.method, told.variant, told.max_draft_tokens) == ("prompt_lookup", "", 5)
    assert not stub.GetVariant(pb.GetVariantRequest(variant="plain")).HasField("speculation")


def test_metrics_and_usage_tell_of_guesses(server: ServerProcess, stub: Any) -> None:
    """What a request's usage says is what the counters grow by."""

    def counted(name: str) -> float:
        pattern = rf'^inference_{name}_tokens_total{{.*variant="looked-up".*}} (\S+)$'
        return float(re.findall(pattern, server.get("/metrics")[1], re.MULTILINE)[0])

    before = counted("draft"), counted("accepted")
    usage = complete(stub, "looked-up", temperature=0).finish.usage
    assert counted("draft") - before[0] == usage.draft_tokens
    assert counted("accepted") - before[1] == usage.accepted_tokens
    answer = httpx.post(
        f"{server.http_url}/completions",
        json={"model": "looked-up", "prompt": PROMPT, "max_tokens": 60, "temperature": 0},
        timeout=60,
    ).json()
    details = answer["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 0
    assert details["rejected_prediction_tokens"] >= 0


# Loaded into the running server.


@pytest.fixture(scope="module")
def admin(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.target) as channel:
        yield admin_pb2_grpc.AdminStub(channel)


def load(admin: Any, name: str, speculation: Any = "", chain: Any = "[]") -> pb.Variant:
    """The last that is told of a load; texts are sent as they are."""
    sent = speculation if isinstance(speculation, str) else json.dumps(speculation)
    request = admin_pb2.LoadVariantRequest(name=name, chain_json=chain, speculation_json=sent)
    *_, last = admin.LoadVariant(request, timeout=120)
    assert last.state == pb.VARIANT_STATE_READY, last.error
    return last


def unload(admin: Any, name: str) -> None:
    admin.UnloadVariant(admin_pb2.UnloadVariantRequest(variant=name), timeout=60)


def drafts_as_it_should(stub: Any, variant: str) -> None:
    """The tokens of the same artifact without drafts, and guesses that were right."""
    plain = complete(stub, "plain", temperature=0)
    fast = complete(stub, variant, temperature=0)
    assert agrees(plain, fast) >= 20
    assert fast.finish.variant == variant
    assert fast.finish.usage.draft_tokens >= fast.finish.usage.accepted_tokens > 20


def test_prompt_lookup_is_loaded_kept_and_lifted(stub: Any, admin: Any) -> None:
    """Sent once, it is there again with the next load, until it is taken away."""
    asked = {"method": "prompt_lookup", "max_draft_tokens": 5, "adaptive": False}
    last = load(admin, "later", asked)
    told = stub.GetVariant(pb.GetVariantRequest(variant="later")).speculation
    assert (told.method, told.variant, told.max_draft_tokens) == ("prompt_lookup", "", 5)
    assert not told.adaptive
    assert last.speculation == told
    drafts_as_it_should(stub, "later")
    unload(admin, "later")
    assert not stub.GetVariant(pb.GetVariantRequest(variant="later")).HasField("speculation")
    assert load(admin, "later", chain="").speculation == told
    unload(admin, "later")
    assert not load(admin, "later", "null").HasField("speculation")
    assert complete(stub, "later", temperature=0).finish.usage.draft_tokens == 0
    unload(admin, "later")


def test_a_draft_is_loaded_and_outlives_the_variant_that_it_came_from(
    server: ServerProcess, stub: Any, admin: Any
) -> None:
    """It has a session of its own, so that whose it was may go."""
    load(admin, "guesser", chain='[{"quantize": {"method": "weight_only", "bits": 4}}]')
    load(admin, "asker", {"method": "draft", "variant": "guesser", "adaptive": False})
    told = stub.GetVariant(pb.GetVariantRequest(variant="asker")).speculation
    assert (told.method, told.variant, told.max_draft_tokens) == ("draft", "guesser", 8)
    drafts_as_it_should(stub, "asker")
    unload(admin, "guesser")
    drafts_as_it_should(stub, "asker")
    assert stub.GetVariant(pb.GetVariantRequest(variant="asker")).speculation == told
    unload(admin, "asker")
    # Asked for anew it must be there; as it was had, it may be missing, as with a config.
    code, said = refused(admin, {"method": "draft", "variant": "guesser"})
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert said.startswith("speculation_json: variant 'guesser' does not serve: it is unloaded; lo")
    assert not load(admin, "asker", chain="").HasField("speculation")
    assert "serves without drafts" in server.log
    unload(admin, "asker")


def refused(admin: Any, speculation: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        load(admin, "wrong", speculation)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize(
    ("speculation", "said"),
    [
        ("{", "is no valid JSON"),
        ("[]", "valid dictionary"),
        ("{}", "method: Field required; see `speculation` in the config"),
        ({"method": "guess"}, "method: Input should be 'prompt_lookup' or 'draft'"),
        ({"method": "prompt_lookup", "tokens": 4}, "tokens: Extra inputs are not permitted"),
        (
            {"method": "prompt_lookup", "max_draft_tokens": 65, "adaptive": "perhaps"},
            "max_draft_tokens: Input should be less than or equal to 64; adaptive: Input should",
        ),
        ({"method": "prompt_lookup", "variant": "int4"}, "means nothing to prompt_lookup. Leave"),
        ({"method": "draft"}, "is required with method draft. Name the variant that guesses: d"),
        ({"method": "draft", "variant": "wrong"}, "is this variant itself. Other variants: "),
        ({"method": "draft", "variant": "int5"}, "no such variant. Did you mean 'int4'? Other"),
    ],
)
def test_wrong_speculation_names_the_field_and_the_remedy(
    stub: Any, admin: Any, speculation: Any, said: str
) -> None:
    """And no variant comes of it."""
    code, details = refused(admin, speculation)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("speculation_json: ")
    assert said in details
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetVariant(pb.GetVariantRequest(variant="wrong"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
