"""A real server whose variants have budgets: the demo's artifacts are judged as they lie there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from artifacts.store import Store
from protos import inference_pb2 as pb
from server.comparison.server_process import ROOT

NARROW = 1e-4  # nats: only the float32 export keeps to it
INT4 = [{"quantize": {"method": "weight_only", "bits": 4}}]
INT8 = [{"quantize": {"method": "dynamic"}}]


@pytest.fixture
def store(own_store: Path) -> Path:
    """The demo's store, in which nobody has measured int8 yet."""
    for path in (own_store / "manifests").iterdir():
        content = json.loads(path.read_text())
        if "dynamic" in str(content["chain"]):
            for record in content["lineage"]:
                record["quality"] = None
            path.chmod(0o644)
            path.write_text(json.dumps(content))
    return own_store


def request(variant: str, tokens: int) -> pb.GenerateRequest:
    sampling = pb.SamplingParameters(max_tokens=tokens, ignore_eos=True, temperature=0)
    return pb.GenerateRequest(variant=variant, text="def main():", sampling=sampling)


def test_variants_keep_to_their_budgets_or_do_not_serve(
    demo_store: Path, store: Path, launch: Any, write_config: Any, *, stub: Any
) -> None:
    """Refused, rolled back, wide enough, and withdrawn after it has served."""
    config = write_config(
        model="demo",
        store=str(store),
        evaluation={"text": str(demo_store.parent / "few.jsonl")},
        budget={"kl_mean": NARROW},
        variants={
            "baseline": [],
            "refused": INT4,
            "cut": {"chain": INT4, "budget": {"on_breach": "rollback"}},
            "wide": {"chain": INT4, "budget": {"kl_mean": 10, "size_bytes": "1GiB"}},
            "late": {"chain": INT8, "budget": {"when": "after_serving"}},
        },
    )
    server = launch(config)
    server.wait_ready()
    ask = stub(server)
    stream = ask.Generate(request("late", 300), timeout=120)
    next(stream)

    def views() -> dict[str, pb.Variant]:
        listed = ask.ListVariants(pb.ListVariantsRequest(), timeout=30).variants
        return {view.name: view for view in listed}

    def failed() -> bool | None:
        return views()["late"].state == pb.VARIANT_STATE_FAILED or None

    server.wait_for(failed)
    seen = views()
    ready, lost = pb.VARIANT_STATE_READY, pb.VARIANT_STATE_FAILED
    within, over = pb.BUDGET_STATE_WITHIN, pb.BUDGET_STATE_EXCEEDED
    assert {name: (view.state, view.budget.state) for name, view in seen.items()} == {
        "baseline": (ready, within),
        "refused": (lost, over),
        "cut": (ready, within),
        "wide": (ready, within),
        "late": (lost, over),
    }
    for name in ("refused", "late"):
        assert "kl_mean is 0." in seen[name].error
    assert "the stage that cost most is quantize (weight_only)" in seen["refused"].error
    assert seen["cut"].budget.rolled_back_stages == 1
    assert seen["cut"].artifact == seen["baseline"].artifact
    assert seen["wide"].artifact == seen["refused"].artifact

    # Whoever was being answered has the whole answer; whoever comes now goes elsewhere.
    tokens = 1 + sum(len(message.token_ids) for message in stream)
    assert tokens == 300
    with pytest.raises(grpc.RpcError) as refused:
        ask.Complete(request("late", 1), timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert ask.Complete(request("cut", 2), timeout=30).finish.usage.completion_tokens == 2
    quality = Store(store).manifest(seen["late"].artifact).quality
    assert quality is not None  # measured once, and kept
    assert quality.kl_mean > NARROW

    page = server.get("/metrics")[1]
    for name, value in {"refused": 0, "cut": 1, "wide": 1, "late": 0}.items():
        labels = f'{{model="demo",variant="{name}"}}'
        assert f"inference_variant_within_budget{labels} {value}.0" in page
    assert json.loads(server.get("/readyz")[1])["status"] == "ready"
    assert server.stop() == 0


def build(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli", "build", str(config)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_a_rollback_builds_the_longest_part_that_keeps_to_the_budget(
    demo_store: Path, own_store: Path, write_config: Any
) -> None:
    """The limit lies between what pruning alone costs and what both cost."""
    chain = [{"prune": {"amount": 0.1}}, *INT4]
    content: dict[str, Any] = {
        "model": "demo",
        "store": str(own_store),
        "evaluation": {"text": str(demo_store.parent / "few.jsonl")},
    }
    assert build(write_config(**content, variants={"cut": chain})).returncode == 0
    store = Store(own_store)
    manifests = [store.manifest(path.stem) for path in (own_store / "manifests").iterdir()]
    (whole,) = (one for one in manifests if len(one.chain) == 2)
    pruned, _, both = (record.quality for record in whole.lineage)
    assert pruned is not None
    assert both is not None
    assert NARROW < pruned.kl_mean < both.kl_mean
    budget = {"kl_mean": (pruned.kl_mean + both.kl_mean) / 2, "on_breach": "rollback"}
    built = build(write_config(**content, budget=budget, variants={"cut": chain}))
    assert built.returncode == 0, built.stderr
    assert "within, without the last 1" in " ".join(built.stdout.split())
    new = {path.stem for path in (own_store / "manifests").iterdir()}
    (part,) = (store.manifest(one) for one in new - {one.digest for one in manifests})
    assert [list(stage) for stage in part.chain] == [["prune"]]
    assert part.quality is not None
    assert part.quality.kl_mean == pytest.approx(pruned.kl_mean, rel=0.01)


@pytest.mark.parametrize(("limit", "status"), [(NARROW, 1), (10, 0)])
def test_build_says_by_its_exit_code_whether_a_budget_is_kept(
    demo_store: Path, own_store: Path, write_config: Any, *, limit: float, status: int
) -> None:
    """A pipeline that builds can stop there."""
    config = write_config(
        model="demo",
        store=str(own_store),
        evaluation={"text": str(demo_store.parent / "few.jsonl")},
        budget={"kl_mean": limit},
        variants={"int4": INT4},
    )
    built = build(config)
    assert built.returncode == status, built.stderr
    assert ("within" in built.stdout) is (status == 0)
    assert ("int4: It is over its budget: kl_mean is" in built.stderr) is (status == 1)
