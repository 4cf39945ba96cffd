"""A real server serves what streams before it is measured; the figures come while it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from artifacts.store import Store
from protos import inference_pb2 as pb

INT4 = [{"quantize": {"method": "weight_only"}}]


def test_an_int4_variant_without_a_budget_serves_first_and_is_measured_then(
    demo_store: Path, tmp_path: Path, launch: Any, write_config: Any, *, stub: Any
) -> None:
    """From an empty store; the manifest has its figures in the end, and a restart finds them."""
    few = demo_store.parent / "few.jsonl"
    config = write_config(
        model="demo",
        store=str(tmp_path / "store"),
        evaluation={"text": str(few)},
        variants={"int4": INT4},
    )
    server = launch(config)
    server.wait_ready()
    ask = stub(server)
    first = ask.GetVariant(pb.GetVariantRequest(), timeout=30)
    assert not any(stage.HasField("quality") for stage in first.lineage)
    sampling = pb.SamplingParameters(max_tokens=4, ignore_eos=True)
    request = pb.GenerateRequest(text="def main():", sampling=sampling)
    assert ask.Complete(request, timeout=60).finish.usage.completion_tokens == 4

    def measured() -> pb.Variant | None:
        view = ask.GetVariant(pb.GetVariantRequest(), timeout=30)
        return view if view.lineage[-1].HasField("quality") else None

    view: pb.Variant = server.wait_for(measured, 300)
    assert view.state == pb.VARIANT_STATE_READY
    assert 0 < view.lineage[-1].quality.kl_mean < 0.1
    assert [stage.stage for stage in view.lineage] == ["export", "quantize"]
    assert server.stop() == 0
    quality = Store(tmp_path / "store").manifest(view.artifact).quality
    assert quality is not None
    # The very artifact that takes all steps: it was measured before it served.
    (manifest,) = (
        one
        for path in (demo_store / "manifests").iterdir()
        if "weight_only" in str((one := json.loads(path.read_text()))["chain"])
    )
    assert manifest["files"] == [
        one.model_dump() for one in Store(tmp_path / "store").manifest(view.artifact).files
    ]
    assert quality.kl_mean == manifest["lineage"][-1]["quality"]["kl_mean"]
