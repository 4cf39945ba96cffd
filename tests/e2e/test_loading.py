"""Variants that are loaded into and unloaded from a real server while it serves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import admin_pb2 as pb
from protos import admin_pb2_grpc
from protos import inference_pb2 as api
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from tests.e2e.conftest import Changing

INT4 = [{"quantize": {"method": "weight_only", "bits": 4}}]
# In no store that the tests share: it must be built.
FRESH = [{"quantize": {"method": "weight_only", "bits": 8}}]
READY, FAILED = api.VARIANT_STATE_READY, api.VARIANT_STATE_FAILED
SERVING = health_pb2.HealthCheckResponse.SERVING


def load(changing: Changing, name: str, chain: Any = None, budget: Any = None) -> Any:
    return changing.admin.LoadVariant(
        pb.LoadVariantRequest(
            name=name,
            chain_json="" if chain is None else json.dumps(chain),
            budget_json="" if budget is None else json.dumps(budget),
        ),
        timeout=300,
    )


def unload(changing: Changing, name: str) -> None:
    changing.admin.UnloadVariant(pb.UnloadVariantRequest(variant=name), timeout=120)


def view(changing: Changing, name: str) -> api.Variant:
    found: api.Variant = changing.ask.GetVariant(api.GetVariantRequest(variant=name), timeout=30)
    return found


def request(variant: str, tokens: int = 4) -> api.GenerateRequest:
    sampling = api.SamplingParameters(max_tokens=tokens, ignore_eos=True, temperature=0)
    return api.GenerateRequest(variant=variant, text="def main():", sampling=sampling)


def health(changing: Changing, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(changing.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status)


def index(changing: Changing) -> dict[str, str]:
    stub = oip_grpc.GRPCInferenceServiceStub(changing.channel)
    listed = stub.RepositoryIndex(oip.RepositoryIndexRequest(), timeout=30).models
    return {model.name: model.state for model in listed}


def rolled_back(changing: Changing) -> pb.Traffic | None:
    """Traffic after one rollback more; None once there is nothing to go back to."""
    try:
        found: pb.Traffic = changing.admin.Rollback(pb.RollbackRequest(), timeout=30)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION  # noqa: PT017 - or an end
        return None
    return found


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def series(changing: Changing, variant: str) -> set[str]:
    """All series of a variant, without its name and what tells artifacts apart."""
    label = f'variant="{variant}"'
    found = set()
    for line in changing.server.get("/metrics")[1].splitlines():
        if label in line and "inference_variant_info" not in line:
            found.add(line.rpartition(" ")[0].replace(label, ""))
    return found


# Loading.


def test_a_chain_is_built_with_progress_and_then_serves(changing: Changing) -> None:
    """Health, index and all metrics know the new variant; routed traffic does not."""
    seen = list(load(changing, "fresh", FRESH))
    states = [message.state for message in seen]
    building = [one for one in seen if one.state == api.VARIANT_STATE_BUILDING]
    assert states[-1] == READY
    assert states == sorted(states)  # never back
    assert {"quantize"} <= {one.progress.stage for one in building}
    assert seen[-1].limits.slots > 0
    assert seen[-1].artifact
    assert seen[-1].traffic_weight == 0
    answer = changing.ask.Complete(request("fresh"), timeout=60)
    assert (answer.finish.variant, answer.finish.artifact) == ("fresh", seen[-1].artifact)
    assert health(changing, "fresh") == SERVING
    assert index(changing)["fresh"] == "READY"
    assert json.loads(changing.server.get("/readyz")[1])["status"] == "ready"
    changing.ask.Complete(request("baseline"), timeout=60)
    assert series(changing, "baseline") <= series(changing, "fresh")
    assert changing.metric("inference_variant_info", variant="fresh") == 1
    assert changing.metric("inference_variant_traffic_share", variant="fresh") == 0


def test_a_budget_that_is_not_kept_refuses_the_variant_and_leaves_traffic(
    changing: Changing,
) -> None:
    """It fails with its reason, takes nothing, and may be loaded again with another budget."""
    traffic = pb.SetTrafficRequest(weights={"baseline": 3, "int8": 1})
    changing.admin.SetTraffic(traffic, timeout=30)
    *_, last = load(changing, "judged", INT4, {"kl_mean": 1e-4})
    assert last.state == FAILED
    assert "over its budget: kl_mean is 0.01" in last.error
    assert health(changing, "judged") != SERVING
    assert view(changing, "baseline").traffic_weight == 3
    assert changing.metric("inference_variant_traffic_share", variant="int8") == 0.25
    assert changing.metric("inference_variant_within_budget", variant="judged") == 0
    assert refused(lambda: changing.ask.Complete(request("judged"), timeout=30))[0] == (
        grpc.StatusCode.UNAVAILABLE
    )
    *_, last = load(changing, "judged", None, {"kl_mean": 10})
    assert (last.state, last.error) == (READY, "")
    assert changing.metric("inference_variant_within_budget", variant="judged") == 1
    changing.admin.SetTraffic(pb.SetTrafficRequest(), timeout=30)
    code, said = refused(lambda: list(load(changing, "x", INT4, {"kl_mean": -1, "klmean": 1})))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "kl_mean: Input should be greater than 0" in said
    assert "klmean: Extra inputs are not permitted" in said


def test_a_wrong_chain_tells_every_error_with_its_remedy(changing: Changing) -> None:
    """As a config's would be told."""
    chain = [{"quantize": {"method": "weight_only", "bits": 5}}, {"polish": {}}]
    code, said = refused(lambda: list(load(changing, "wrong", chain)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "chain_json: variants.wrong.chain[0].quantize.bits: " in said
    assert "[1].polish: There is no stage 'polish'. Stages: " in said
    code, _ = refused(lambda: view(changing, "wrong"))
    assert code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ("{", "is no valid JSON"),
        ("{}", "is no array"),
        ("", "is not set"),
        ('[{"quantize": {"bits": NaN}}]', "is no valid JSON"),
        ('["\\ud800"]', "is no valid JSON"),
        ("[" * 101 + "]" * 101, "nested more than 100 levels deep"),
        ("[" * 30_000 + "]" * 30_000, "nested more than 100 levels deep"),
        ("[" + "1," * 40_000 + "1]", "more than 65536 characters"),
        ("5" * 6000, "is no valid JSON"),
    ],
)
def test_what_is_no_chain_is_told_as_that(changing: Changing, chain: str, said: str) -> None:
    """Whatever the text is; never as a fault of the server."""
    message = pb.LoadVariantRequest(name="wrong", chain_json=chain)
    code, details = refused(lambda: list(changing.admin.LoadVariant(message, timeout=60)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("chain_json: ")
    assert said in details


def test_only_what_lies_below_the_roots_may_be_named(changing: Changing) -> None:
    """Not by dots, not by links, not by homes, not from the hub, and not in any other field."""
    outside = changing.roots.parent / "secret"
    outside.mkdir()
    (changing.roots / "link").symlink_to(outside)
    for name in (
        str(outside),
        f"{changing.roots}/../secret",
        str(changing.roots / "link"),
        str(changing.roots / "none"),
        "~/model",
        "gpt2",
        "evil/model",
        "demo/../../etc",
    ):
        for chain in (
            [{"distill": {"substitute": name}}],
            [{"quantize": {"method": name, "model": name}}],
            [{"quantize": {"unknown": {"deep": [{"model": name}]}}}],
        ):
            code, said = refused(lambda chain=chain: list(load(changing, "x", chain)))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert f"chain_json: names {name!r}, which lies outside" in said
            assert "admin.models or admin.roots" in said


def test_a_model_below_a_root_is_looked_at(changing: Changing) -> None:
    """The twin: the same chain gets as far as the optimizer, which finds the folder empty."""
    (changing.roots / "empty").mkdir()
    chain = [{"distill": {"substitute": str(changing.roots / "empty")}}]
    code, said = refused(lambda: list(load(changing, "x", chain)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "lies outside" not in said
    assert "distill.substitute" in said


def test_names_that_are_taken_or_are_none_are_refused(changing: Changing) -> None:
    """The name of routed traffic too."""
    for name, code, said in (
        ("baseline", grpc.StatusCode.ALREADY_EXISTS, "unload it first"),
        ("Upper", grpc.StatusCode.INVALID_ARGUMENT, "is no name of a variant"),
        ("routed", grpc.StatusCode.INVALID_ARGUMENT, "is no name of a variant"),
        ("line\n", grpc.StatusCode.INVALID_ARGUMENT, "is no name of a variant"),
    ):
        found = refused(lambda name=name: list(load(changing, name, INT4)))
        assert found[0] == code
        assert said in found[1]


@pytest.mark.parametrize("after_a_message", [True, False])
def test_leaving_the_stream_does_not_stop_the_load(
    changing: Changing, *, after_a_message: bool
) -> None:
    """Whether its chain was judged already or not."""
    name = f"left-{after_a_message}".lower()
    stream = load(changing, name, INT4)
    if after_a_message:
        next(stream)
    else:
        changing.server.wait_for(lambda: changing.server.children() or None)  # it is judged
    stream.cancel()

    def ready() -> bool | None:
        listed = changing.ask.ListVariants(api.ListVariantsRequest(), timeout=30).variants
        return any(one.name == name and one.state == READY for one in listed) or None

    assert changing.server.wait_for(ready)


def test_two_loads_at_a_time_both_come_up(changing: Changing) -> None:
    """One is built after the other; names do not get mixed up."""
    ends: dict[str, api.Variant] = {}

    def run(name: str, chain: Any) -> None:
        *_, ends[name] = load(changing, name, chain)

    chains = {"one": INT4, "two": []}
    threads = [threading.Thread(target=run, args=item) for item in chains.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert {name: end.state for name, end in ends.items()} == {"one": READY, "two": READY}
    assert ends["two"].artifact == view(changing, "baseline").artifact
    assert ends["one"].artifact != ends["two"].artifact


# Unloading.


def test_streams_finish_and_nobody_else_begins(changing: Changing) -> None:
    """While it drains it is gone for whoever comes now, and its slots come back."""
    list(load(changing, "drained", INT4))
    stream = changing.ask.Generate(request("drained", 700), timeout=120)
    tokens = len(next(stream).token_ids)
    done = threading.Event()

    def run() -> None:
        unload(changing, "drained")
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    changing.server.wait_for(lambda: health(changing, "drained") != SERVING or None)
    code, said = refused(lambda: changing.ask.Complete(request("drained"), timeout=30))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert "it is unloaded" in said
    code, _ = refused(lambda: list(load(changing, "drained")))
    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert not done.is_set()
    tokens += sum(len(message.token_ids) for message in stream)
    assert tokens == 700
    thread.join(30)
    assert done.is_set()
    assert changing.metric("inference_running_requests", variant="drained") == 0
    assert view(changing, "drained").state == api.VARIANT_STATE_UNLOADED
    assert index(changing)["drained"] == "UNAVAILABLE"
    assert json.loads(changing.server.get("/readyz")[1])["status"] == "ready"
    *_, last = load(changing, "drained")  # by the chain that it had
    assert last.state == READY
    assert changing.ask.Complete(request("drained", 2), timeout=30).finish.variant == "drained"


def test_memory_comes_back(changing: Changing) -> None:
    """A variant costs its weights while it serves, and nothing after it is unloaded."""
    process = psutil.Process(changing.server.process.pid)
    loaded, gone = [], []
    for _ in range(4):
        list(load(changing, "heavy", []))
        changing.ask.Complete(request("heavy", 200), timeout=60)
        loaded.append(process.memory_info().rss)
        unload(changing, "heavy")
        gone.append(process.memory_info().rss)
    weights = view(changing, "heavy").size_bytes
    assert min(a - b for a, b in zip(loaded, gone, strict=True)) > 0.7 * weights
    assert gone[-1] - gone[0] < 0.5 * weights


def test_what_takes_traffic_is_not_unloaded(changing: Changing) -> None:
    """Neither who takes all because nobody else was named, nor the shadow."""
    code, said = refused(lambda: unload(changing, "baseline"))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "takes routed traffic" in said
    assert refused(lambda: unload(changing, "nobody"))[0] == grpc.StatusCode.NOT_FOUND
    shadow = pb.Shadow(candidate="int8", fraction=1)
    changing.admin.SetTraffic(pb.SetTrafficRequest(shadow=shadow), timeout=30)
    code, said = refused(lambda: unload(changing, "int8"))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "is the shadow" in said
    changing.admin.SetTraffic(pb.SetTrafficRequest(), timeout=30)


def test_the_default_can_be_replaced(changing: Changing) -> None:
    """Health is that of routed traffic, and a rollback never leads to who is gone."""
    changing.admin.Promote(pb.PromoteRequest(variant="int8"), timeout=30)
    unload(changing, "baseline")
    assert health(changing, "") == SERVING
    assert health(changing, "baseline") != SERVING
    assert changing.server.get("/healthz")[0] == changing.server.get("/readyz")[0] == 200
    assert {name: state for name, state in index(changing).items() if name != "fresh"}.items() >= {
        "routed": "READY",
        "int8": "READY",
        "baseline": "UNAVAILABLE",
    }.items()
    assert changing.ask.Complete(request(""), timeout=30).finish.variant == "int8"
    while (back := rolled_back(changing)) is not None:  # whatever there was before
        assert back.weights
        assert "baseline" not in back.weights
        assert changing.ask.Complete(request(""), timeout=30).finish.variant != "baseline"
    code, _ = refused(lambda: changing.admin.SetTraffic(pb.SetTrafficRequest(), timeout=30))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    *_, last = load(changing, "baseline")
    assert (last.state, last.is_default) == (READY, True)
    changing.admin.SetTraffic(pb.SetTrafficRequest(), timeout=30)
    assert changing.ask.Complete(request(""), timeout=30).finish.variant == "baseline"


def test_another_chain_under_the_same_name_is_another_artifact(changing: Changing) -> None:
    """Its info changes, and the old artifact's figures are forgotten."""
    *_, first = load(changing, "swapped", INT4)
    changing.ask.Complete(request("swapped", 8), timeout=30)
    old = pb.CompareRequest(baseline="baseline", candidate="swapped")
    before = changing.admin.Compare(old, timeout=30)
    assert before.candidate_requests == 1
    assert before.HasField("candidate_engine_seconds_per_token")
    labels = {"variant": "swapped", "artifact": first.artifact}
    assert changing.metric("inference_variant_info", **labels) == 1
    unload(changing, "swapped")
    *_, second = load(changing, "swapped", [{"quantize": {"method": "dynamic"}}])
    assert second.artifact != first.artifact
    assert changing.metric("inference_variant_info", **labels) is None
    assert changing.metric("inference_variant_info", variant="swapped") == 1
    after = changing.admin.Compare(old, timeout=30)
    assert after.candidate_requests == 0
    assert not after.HasField("candidate_engine_seconds_per_token")


# Stopping.

SLOW_LOAD = """
import time
import server.loading
from server.cli import main

opened = server.loading.open_session
count = 0

def open_slowly(*arguments, **options):
    global count
    count += 1
    if count > 1:
        print("LOADING", flush=True)
        time.sleep(600)
    return opened(*arguments, **options)

server.loading.open_session = open_slowly
main()
"""


@pytest.mark.parametrize("moment", ["judging", "building", "loading"])
def test_sigterm_during_a_load_ends_cleanly(
    own_store: Path, launch: Any, write_config: Any, *, moment: str
) -> None:
    """No orphan, no half artifact, and whoever waits for the load hears of it."""
    manifests = set((own_store / "manifests").iterdir())
    config = write_config(model="demo", store=str(own_store), variants={"baseline": []})
    options = {"program": ("-c", SLOW_LOAD)} if moment == "loading" else {}
    server = launch(config, **options)
    server.wait_ready()
    chain = json.dumps(INT4 if moment == "loading" else FRESH)
    with grpc.insecure_channel(server.target) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        call = pb.LoadVariantRequest(name="new", chain_json=chain)
        stream = admin.LoadVariant(call, timeout=300)
        if moment == "building":
            while next(stream).progress.stage != "quantize":
                pass
        elif moment == "loading":
            server.wait_line("^(LOADING)$")
        else:
            server.wait_for(lambda: server.children() or None)
        children = server.children()
        assert children or moment == "loading"
        assert server.stop() == 0
        try:
            rest = list(stream)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - or an end
        else:
            assert READY not in {one.state for one in rest}
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert set((own_store / "manifests").iterdir()) == manifests
    assert "Traceback" not in server.log
