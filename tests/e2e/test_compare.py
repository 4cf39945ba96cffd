"""The command that compares: real servers, real rounds, and a server that shows the figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from protos import inference_pb2 as pb
from server.comparison.server_process import ROOT, ServerProcess

VARIANTS: dict[str, Any] = {
    "int8": [{"quantize": {"method": "dynamic"}}],
    "baseline": [],
}


def command(config: Path, out: Path, *arguments: str) -> list[str]:
    program = [sys.executable, "-m", "server.cli", "compare"]
    return [*program, str(config), "--out", str(out), *arguments]


def run(config: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(config, out, *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_quick_comparison_of_the_demo(
    own_store: Path, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    """One round: exact and measured figures are there, and nothing is sure that cannot be."""
    config = write_config(
        model="demo", store=str(own_store), variants=VARIANTS, budget={"size_bytes": "10MB"}
    )
    out = tmp_path / "report"
    done = run(config, out, "--quick", "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "report.html"}
    report = json.loads((out / "report.json").read_text())
    assert (report["baseline"], report["complete"]) == ("baseline", True)
    int8 = report["variants"]["int8"]
    (round_,) = int8["rounds"]
    assert round_["decode_8"] > 0
    assert 0 < round_["engine_seconds_per_token"] < 1
    assert len(round_["inter_token_s"]) >= 20
    assert int8["comparisons"]["decode_1_tokens_per_second"]["verdict"] == "too few samples"
    assert int8["comparisons"]["kl_mean"]["verdict"] == "worse"
    assert any(
        line.startswith("artifact 0.33x the size") for line in int8["findings"]["advantages"]
    )
    (breach,) = report["variants"]["baseline"]["breaches"]
    assert breach.startswith("size_bytes is 21,")
    assert int8["breaches"] == []
    assert len(int8["divergence"]["first"]) == 8


@pytest.mark.slow
def test_a_comparison_is_kept_for_the_server_of_this_machine(
    own_store: Path,
    tmp_path: Path,
    write_config: Callable[..., Path],
    launch: Callable[..., ServerProcess],
    stub: Callable[[ServerProcess], Any],
) -> None:
    """GetVariant and the metrics show what the report says."""
    config = write_config(model="demo", store=str(own_store), variants=VARIANTS)
    out = tmp_path / "report"
    done = run(config, out, "--rounds", "3", "--variants", "int8, baseline")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((out / "report.json").read_text())["variants"]["int8"]
    server = launch(config)
    server.wait_ready()
    shown = stub(server).GetVariant(pb.GetVariantRequest(variant="int8")).host_figures
    assert shown.rounds == 3
    decoding = told["speeds"]["decode_8_tokens_per_second"]
    figure = shown.speeds["decode_8_tokens_per_second"]
    assert (figure.value, figure.low, figure.high) == (
        decoding["value"],
        decoding["low"],
        decoding["high"],
    )
    page = server.get("/metrics")[1]
    for line in (
        'inference_variant_speed{measure="decode_8_tokens_per_second",model="demo",variant="int8"}',
        'inference_variant_quality{measure="kl_mean_low",model="demo",variant="int8"}',
    ):
        assert line in page


@pytest.mark.slow
def test_an_interrupted_comparison_reports_what_it_has_and_leaves_nothing_behind(
    own_store: Path, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    """Ctrl-C in the third turn: two turns are in the report, which says that it is not whole."""
    config = write_config(model="demo", store=str(own_store), variants=VARIANTS)
    out = tmp_path / "report"
    log = tmp_path / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            command(config, out, "--quick", "--rounds", "50"),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=said,
            stderr=said,
        )
    deadline_s = time.monotonic() + 120
    while '"3/100"' not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    servers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 1
    report = json.loads((out / "report.json").read_text())
    assert not report["complete"]
    assert [len(variant["rounds"]) for variant in report["variants"].values()] == [1, 1]
    psutil.wait_procs(servers, timeout=10)
    assert not [server for server in servers if server.is_running()]


@pytest.mark.slow
def test_a_killed_comparison_leaves_no_server_behind(
    own_store: Path, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    """The server ends by itself when whoever measured it is gone."""
    config = write_config(model="demo", store=str(own_store), variants=VARIANTS)
    process = subprocess.Popen(
        command(config, tmp_path / "report", "--rounds", "50"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + 120
    servers: list[psutil.Process] = []
    while not servers:
        assert time.monotonic() < deadline_s
        children = psutil.Process(process.pid).children(recursive=True)
        servers = [child for child in children if "server.comparison.kept" in child.cmdline()]
        time.sleep(0.05)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(servers, timeout=60)
    assert not alive


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--variants", "int9"), 2, "no variant 'int9'. Did you mean 'int8'?"),
        (("--rounds", "0"), 2, "--rounds"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_measured(
    tmp_path: Path,
    write_config: Callable[..., Path],
    arguments: tuple[str, ...],
    code: int,
    sentence: str,
) -> None:
    """With the same words and codes as other commands."""
    config = write_config(model="demo", store=str(tmp_path / "store"), variants=VARIANTS)
    done = run(config, tmp_path / "report", *arguments)
    assert done.returncode == code
    assert sentence in done.stderr


def test_an_out_folder_that_is_a_file_is_told_at_once(
    tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    """Not after an hour of measuring."""
    (tmp_path / "report").write_text("a file")
    config = write_config(model="demo", store=str(tmp_path / "store"), variants=VARIANTS)
    done = run(config, tmp_path / "report")
    assert (done.returncode, "--out" in done.stderr) == (2, True)
