"""The search over real builds and real servers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.comparison.server_process import ROOT, ServerProcess
from server.config.sources import load

HAND_WRITTEN: dict[str, Any] = {
    "baseline": [],
    "int8": [{"quantize": {"method": "dynamic"}}],
    "int4": [{"quantize": {"method": "weight_only", "bits": 4}}],
}
# A line of the journal; what hand-written variants were measured to be stands there earlier.
MEASURED_TRIAL = re.compile(r'^(?=.*"trial_id":)(?=.*"kind":"measured")', re.MULTILINE)
SPACE: list[Any] = [
    {"choice": ["none", {"restructure": {"method": "depth", "drop": {"low": 1, "high": 2}}}]},
    {
        "choice": [
            {"quantize": {"method": "dynamic"}},
            {
                "quantize": {
                    "method": "weight_only",
                    "bits": {"choice": [4, 8]},
                    "block_size": {"choice": [32, 64, 128]},
                    "algorithm": {"choice": ["rtn", "k_quant"]},
                }
            },
        ]
    },
]


def start(config: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "server.cli", "search", str(config), "--out", str(out)]
    return subprocess.Popen(
        [*program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_real_optimizer_judges_a_space_before_anything_is_built(
    tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    """A misspelt field of an open stage is told with its path; the same config is not served."""
    misspelt = [{"quantize": {"method": "weight_only", "bitz": {"choice": [4, 8]}}}]
    config = write_config(model="demo", store=str(tmp_path / "s"), variants={"lean": misspelt})
    search = start(config, tmp_path / "out.yaml")
    _, said = search.communicate(timeout=120)
    assert search.returncode == 2
    assert "variants.lean.chain[0].quantize.bitz" in said
    assert "Did you mean 'bits'?" in said
    serve = subprocess.run(
        [sys.executable, "-m", "server.cli", "serve", str(config)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert serve.returncode == 2
    assert "inference-unlimited search" in serve.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twelve_trials_on_the_demo_survive_a_kill_and_end_in_a_config_that_serves(
    own_store: Path, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    """Killed after some trials, gone on with, reported honestly, and served as it is."""
    config = write_config(
        model="demo",
        store=str(own_store),
        budget={"kl_mean": 0.3},
        variants={**HAND_WRITTEN, "lean": SPACE},
        log={"format": "json"},
    )
    out = tmp_path / "search.yaml"
    first = start(config, out, "--trials", "12")
    studies = own_store / "studies"
    while not any(MEASURED_TRIAL.search(one.read_text()) for one in studies.glob("*.log")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    first.kill()
    first.communicate()

    second = start(config, out, "--trials", "12")
    said, complained = second.communicate()
    assert second.returncode == 0, complained
    assert "going on with" in complained
    assert "Pareto front" in said
    content = json.loads(out.with_suffix(".json").read_text())
    counted = [one for one in content["trials"] if one["kind"] in {"measured", "over_budget"}]
    assert len(counted) == 12
    assert len({one["recipe"] for one in counted}) == 12
    contenders = {one["name"]: one for one in content["contenders"]}
    assert all(len(one["rounds"]) == 3 for one in contenders.values())
    for name in content["added"]:  # what is claimed can be seen in the figures
        for known in HAND_WRITTEN:
            mine, theirs = contenders[name]["measures"], contenders[known]["measures"]
            assert (
                mine["kl_mean"] < theirs["kl_mean"]
                or mine["resident_bytes"] < theirs["resident_bytes"]
                or mine["decode_1"] > theirs["decode_1"]
                or mine["prefill"] > theirs["prefill"]
            )
    written = load(out, environment={}, flags={})
    with ServerProcess(out, stderr=tmp_path / "server.log") as server:
        states = {one["name"]: one["state"] for one in server.wait_ready()["variants"]}
    assert states == dict.fromkeys(written.variants, "ready")
