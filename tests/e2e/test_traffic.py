"""Traffic that is split, shadowed, moved and compared on a real server."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from artifacts.store import Store
from protos import admin_pb2 as pb
from protos import inference_pb2 as api
from tests.e2e.conftest import Changing

INT4 = [{"quantize": {"method": "weight_only", "bits": 4}}]
TEXTS = [
    json.loads(line)["text"]
    for line in (Path(__file__).parents[2] / "demo" / "heldout.jsonl").read_text().splitlines()
]
KEYS = [f"user {number}" for number in range(60)]


@pytest.fixture(autouse=True)
def untouched(changing: Changing) -> None:
    """Every test begins with the default's traffic."""
    direct(changing)


def direct(
    changing: Changing, shadow: tuple[str, float] | None = None, **weights: float
) -> pb.Traffic:
    message = pb.SetTrafficRequest(weights=weights)
    if shadow is not None:
        message.shadow.CopyFrom(pb.Shadow(candidate=shadow[0], fraction=shadow[1]))
    found: pb.Traffic = changing.admin.SetTraffic(message, timeout=30)
    return found


def load(changing: Changing, name: str, chain: list[Any]) -> None:
    listed = changing.ask.ListVariants(api.ListVariantsRequest(), timeout=30).variants
    if not any(one.name == name and one.state == api.VARIANT_STATE_READY for one in listed):
        call = pb.LoadVariantRequest(name=name, chain_json=json.dumps(chain))
        *_, last = changing.admin.LoadVariant(call, timeout=300)
        assert last.state == api.VARIANT_STATE_READY, last.error


def complete(changing: Changing, text: str, tokens: int = 3, **more: Any) -> api.CompleteResponse:
    sampling = api.SamplingParameters(max_tokens=tokens, ignore_eos=True, temperature=0)
    request = api.GenerateRequest(text=text, sampling=sampling, **more)
    found: api.CompleteResponse = changing.ask.Complete(request, timeout=120)
    return found


def homes(changing: Changing) -> dict[str, str]:
    """Which variant each key goes to."""
    return {key: complete(changing, "x", 1, routing_key=key).finish.variant for key in KEYS}


def compare(changing: Changing, candidate: str, baseline: str = "") -> pb.CompareResponse:
    request = pb.CompareRequest(baseline=baseline, candidate=candidate)
    found: pb.CompareResponse = changing.admin.Compare(request, timeout=60)
    return found


# Splitting.


def test_keys_stay_where_they_are_until_weights_move_them(changing: Changing) -> None:
    """More weight takes keys over and gives none away; back again, all are where they were."""
    direct(changing, baseline=1, int8=1)
    even = homes(changing)
    assert homes(changing) == even
    assert 15 < list(even.values()).count("baseline") < 45
    direct(changing, baseline=4, int8=1)
    uneven = homes(changing)
    moved = {key for key in KEYS if uneven[key] != even[key]}
    assert moved
    assert {uneven[key] for key in moved} == {"baseline"}
    assert changing.metric("inference_variant_traffic_share", variant="baseline") == 0.8

    promoted = changing.admin.Promote(pb.PromoteRequest(variant="int8"), timeout=30)
    assert promoted == pb.Traffic(weights={"int8": 1})
    assert set(homes(changing).values()) == {"int8"}
    assert changing.metric("inference_variant_traffic_share", variant="baseline") == 0

    back = changing.admin.Rollback(pb.RollbackRequest(), timeout=30)
    assert back == pb.Traffic(weights={"baseline": 4, "int8": 1})
    assert homes(changing) == uneven
    changing.admin.Rollback(pb.RollbackRequest(), timeout=30)
    assert homes(changing) == even
    assert changing.admin.Rollback(pb.RollbackRequest(), timeout=30) == pb.Traffic()
    assert set(homes(changing).values()) == {"baseline"}


def test_a_key_returns_when_its_variant_is_loaded_again(changing: Changing) -> None:
    """Meanwhile only its own keys went elsewhere."""
    load(changing, "third", INT4)
    weights = {"baseline": 1.0, "int8": 1.0, "third": 1.0}
    direct(changing, **weights)
    before = homes(changing)
    direct(changing, baseline=1, int8=1)
    changing.admin.UnloadVariant(pb.UnloadVariantRequest(variant="third"), timeout=60)
    without = homes(changing)
    assert all(without[key] == home for key, home in before.items() if home != "third")
    # Three changes back it took a share: that is left out now.
    changing.admin.Rollback(pb.RollbackRequest(), timeout=30)
    assert homes(changing) == without
    load(changing, "third", INT4)
    direct(changing, **weights)
    assert homes(changing) == before


@pytest.mark.parametrize(
    ("weights", "shadow", "code", "said"),
    [
        ({"baseline": -1}, None, grpc.StatusCode.INVALID_ARGUMENT, "weights[baseline]: -1"),
        ({"nobody": 1}, None, grpc.StatusCode.NOT_FOUND, "use one of: baseline, int8"),
        ({}, ("int8", 0), grpc.StatusCode.INVALID_ARGUMENT, "shadow.fraction: 0"),
        ({}, ("nobody", 1), grpc.StatusCode.NOT_FOUND, "use one of: baseline, int8"),
    ],
)
def test_wrong_traffic_is_told_and_changes_nothing(
    changing: Changing, weights: Any, shadow: Any, *, code: grpc.StatusCode, said: str
) -> None:
    """The sentence names the field."""
    direct(changing, int8=1)
    with pytest.raises(grpc.RpcError) as caught:
        direct(changing, shadow, **weights)
    assert caught.value.code() == code
    assert said in caught.value.details()
    assert complete(changing, "x").finish.variant == "int8"


_WINDOW_S = 2.0  # of engine time: one step that the host holds up is no more than a few hundredths
_CALLERS = 8  # per variant: more than run at once, so that none waits for a caller


def test_the_engine_s_shares_follow_traffic(changing: Changing) -> None:
    """Both variants have more to do than they can: seconds are given out by weight."""
    ended = threading.Event()

    def ask_on(variant: str) -> None:
        while not ended.is_set():
            complete(changing, "x", 200, variant=variant)

    def seconds() -> dict[str, float]:
        return {
            name: changing.metric("inference_engine_seconds_total", variant=name) or 0.0
            for name in ("baseline", "int8")
        }

    def share(**weights: float) -> float:
        direct(changing, **weights)
        before = seconds()
        while sum((now := seconds()).values()) - sum(before.values()) < _WINDOW_S:
            time.sleep(0.1)
        used = {name: now[name] - before[name] for name in now}
        return used["baseline"] / sum(used.values())

    with ThreadPoolExecutor(2 * _CALLERS) as callers:
        asked = [callers.submit(ask_on, name) for name in _CALLERS * ("baseline", "int8")]
        try:
            # With the same callers in all three, so neither runs out of work in one of them alone.
            assert share(baseline=9, int8=1) > 0.75
            assert 0.35 < share(baseline=1, int8=1) < 0.65
            assert share(baseline=1, int8=9) < 0.25
        finally:
            ended.set()
        for one in asked:
            one.result()


# The shadow.


def shadowed(changing: Changing, candidate: str, texts: list[str]) -> list[list[int]]:
    """Answer texts with a candidate behind; gives the answers."""

    def positions() -> float:
        labels = {"variant": candidate, "serving": "baseline"}
        return changing.metric("inference_shadow_positions_total", **labels) or 0.0

    direct(changing, (candidate, 1.0), baseline=1)
    answers = []
    for text in texts:
        before = positions()
        answers.append(list(complete(changing, text, 24).token_ids))
        changing.server.wait_for(lambda before=before: positions() >= before + 24 or None)
    return answers


def test_a_shadow_judges_as_the_manifest_does_and_nobody_notices(changing: Changing) -> None:
    """int4 against the original on real traffic; answers are what they were without it."""
    load(changing, "int4", INT4)
    texts = [text[start : start + 200] for text in TEXTS[:8] for start in (0, 300, 600)]
    alone = [list(complete(changing, text, 24).token_ids) for text in texts]
    dropped = changing.metric("inference_shadow_dropped_total", variant="int4")
    assert shadowed(changing, "int4", texts) == alone
    found = compare(changing, "int4")
    assert (found.baseline, found.candidate) == ("baseline", "int4")
    shadow = found.shadow
    assert (shadow.answers, shadow.positions) == (len(texts), 24 * len(texts))
    artifact = changing.ask.GetVariant(api.GetVariantRequest(variant="int4"), timeout=30).artifact
    quality = Store(changing.store).manifest(artifact).quality
    assert quality is not None
    # Its own text is surer than text of others; the manifest's is of the latter.
    assert quality.kl_mean / 4 < shadow.kl_lower_bound.value < quality.kl_mean * 2
    assert abs(shadow.top1_agreement.value - quality.top1_agreement) < 0.08
    assert shadow.kl_lower_bound.low < shadow.kl_lower_bound.value < shadow.kl_lower_bound.high
    assert shadow.logprob_difference.value < 0  # what the original chose, it likes better
    assert changing.metric("inference_shadow_dropped_total", variant="int4") == dropped
    labels = {"variant": "int4", "serving": "baseline"}
    total = changing.metric("inference_shadow_kl_lower_bound_nats_total", **labels)
    assert total == pytest.approx(shadow.kl_lower_bound.value * shadow.positions)
    assert changing.metric("inference_requests_total", variant="int4", status="ok") == 0
    assert found.HasField("candidate_engine_seconds_per_token")
    assert found.latency_ratios == {}


def test_the_same_artifact_has_nothing_against_it(changing: Changing) -> None:
    """Whatever the shadow says of another is not its own noise."""
    load(changing, "twin", [])
    texts = [text[:150] for text in TEXTS[:10]]
    shadowed(changing, "twin", texts)
    shadow = compare(changing, "twin").shadow
    assert shadow.answers == 10
    assert shadow.top1_agreement.value == 1.0
    assert shadow.kl_lower_bound.value < 1e-6
    assert abs(shadow.logprob_difference.value) < 1e-5


def test_both_a_shadow_and_a_split_compare(changing: Changing) -> None:
    """Quality in pairs, latency of two samples, seconds of the engine; and what they do not say."""
    load(changing, "both", INT4)
    direct(changing, ("both", 1.0), baseline=1, both=1)
    for number in range(120):
        complete(changing, TEXTS[number % 8][: 100 + number], 6)
    found = compare(changing, "both", "baseline")
    assert found.baseline_requests >= 20
    assert found.candidate_requests >= 20
    assert found.shadow.answers > 0
    assert set(found.latency_ratios) == {
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
    }
    for ratio in found.latency_ratios.values():
        assert 0 < ratio.low <= ratio.value <= ratio.high
    assert found.baseline_engine_seconds_per_token > 0
    assert found.candidate_engine_seconds_per_token > 0
    assert any("engine seconds do not" in note for note in found.notes)


def test_without_traffic_there_is_nothing_to_compare(changing: Changing) -> None:
    """Notes say what to do, and no figure is made up."""
    load(changing, "unasked", INT4)
    found = compare(changing, "unasked")
    assert not found.HasField("shadow")
    assert found.latency_ratios == {}
    assert not found.HasField("candidate_engine_seconds_per_token")
    assert any("SetTraffic a shadow" in note for note in found.notes)
    for call in ({"candidate": "baseline"}, {"candidate": ""}, {"candidate": "nobody"}):
        with pytest.raises(grpc.RpcError) as caught:
            compare(changing, **call)
        assert caught.value.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
        )
