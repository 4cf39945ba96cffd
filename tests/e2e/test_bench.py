"""The load generator's command against real servers: figures, statuses, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.comparison.server_process import ROOT, ServerProcess

LOAD = ["--prompt-tokens", "uniform:4:16", "--output-tokens", "uniform:3:6"]
SECRET = "a-secret-of-sixteen-characters"  # noqa: S105 - of this test alone


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "server.cli", "bench", *arguments]


def environment(**variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERENCE_UNLIMITED_")}
    return kept | {"COLUMNS": "100"} | variables


def bench(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def matches(pattern: str, text: str) -> list[str]:
    """All lines' matches."""
    return re.findall(pattern, text, re.MULTILINE)


@pytest.fixture(scope="module")
def server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two variants of the demo; one takes two requests, and one more that waits."""
    folder = tmp_path_factory.mktemp("server")
    content = {
        "model": "demo",
        "variants": {"baseline": [], "int8": [{"quantize": {"method": "dynamic"}}]},
        "engine": {"slots": 2, "max_waiting": 1, "max_length": 128},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    with ServerProcess(
        config,
        stderr=folder / "server.log",
        environment={"INFERENCE_UNLIMITED_STORE": str(demo_store)},
    ) as server:
        server.wait_ready()
        yield server


def test_figures_are_told_by_variant_as_json(server: ServerProcess, tmp_path: Path) -> None:
    """What is printed is what is written, every request has one status, and nothing was cached."""
    out = tmp_path / "report.json"
    asked = ("--variant", "baseline", "--variant", "int8", "--requests", "90", "--concurrency", "3")
    ran = bench(
        *("--target", server.target, *asked, *LOAD, "--cancel-rate", "0.2", "--warm-up", "4"),
        *("--slo-first-token", "30", "--json", "--out", str(out)),
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report == json.loads(out.read_text(encoding="utf-8"))
    assert report["requests"] == sum(report["statuses"].values()) == 90
    assert set(report["statuses"]) == {"ok", "left"}
    assert set(report["variants"]) == {"baseline", "int8"}
    for figures in report["variants"].values():
        assert figures["requests"] == 45
        assert figures["time_to_first_token_seconds"]["p50"] > 0
        assert figures["inter_token_latency_seconds"]["p50"] > 0
        assert figures["queue_seconds"]["samples"] == figures["statuses"]["ok"]
        assert figures["goodput_share"] == 1.0
    assert report["cached_tokens"] == 0
    assert report["load"]["concurrency"] == 3
    assert report["load"]["warm_up"] == 4
    assert report["lateness_seconds"]["samples"] == 90


def test_a_seed_repeats_the_lengths(server: ServerProcess) -> None:
    """The same tokens out; the repetition meets the server's cache, and says so."""
    reports = []
    for _ in range(2):
        ran = bench(
            *("--target", server.target, "--requests", "2", "--concurrency", "1", "--seed", "11"),
            *("--prompt-tokens", "64", "--output-tokens", "uniform:2:30", "--json"),
        )
        assert ran.returncode == 0, ran.stderr
        reports.append(json.loads(ran.stdout) | {"said": ran.stderr})
    first, second = reports
    tokens = [round(one["tokens_per_second"] * one["seconds"]) for one in reports]
    assert tokens[0] == tokens[1]
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] > 0
    assert "take another one" in second["said"]
    assert "take another one" not in first["said"]


def test_tables_are_for_people(server: ServerProcess) -> None:
    """An open loop, with the same figures as text."""
    ran = bench(
        *("--target", server.target, "--rate", "40", "--requests", "45", "--variant", "int8", *LOAD)
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(
        r"^all: 45 requests, [\d.]+ tokens/s, goodput [\d.]+/s \(\d+%\)$", ran.stdout, re.MULTILINE
    )
    assert "int8: 45 requests" in ran.stdout
    for row in ("to first token", "between tokens", "whole request", "in the queue"):
        assert re.search(rf"^ {row} +[\d.]+ ", ran.stdout, re.MULTILINE)
    assert re.search(
        r" answered requests/s over [\d.]+ s: .*ok.*\. Seed \d+\.$", ran.stdout, re.MULTILINE
    )


def test_more_than_the_server_takes_is_refused_and_counted(server: ServerProcess) -> None:
    """An open loop beyond what it can; each refused request has that status and its time."""
    ran = bench(
        *("--target", server.target, "--rate", "500", "--requests", "60", "--json"),
        *("--prompt-tokens", "8", "--output-tokens", "60", "--variant", "baseline"),
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    statuses = report["statuses"]
    assert set(statuses) == {"ok", "resource_exhausted"}
    assert sum(statuses.values()) == 60
    assert report["refusal_seconds"]["samples"] == statuses["resource_exhausted"] > 0
    assert "try again later" in report["messages"]["resource_exhausted"]
    assert report["goodput_share"] == pytest.approx(statuses["ok"] / 60)


def test_deadlines_are_kept(server: ServerProcess) -> None:
    """Nobody is answered in so little time, which is no success."""
    ran = bench(
        *("--target", server.target, "--requests", "4", "--concurrency", "2"),
        *("--timeout", "0.02", "--prompt-tokens", "8", "--output-tokens", "110", "--json"),
    )
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["statuses"] == {"deadline_exceeded": 4}
    assert "warning: No request was answered." in ran.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_shows_what_came(
    server: ServerProcess, tmp_path: Path, number: signal.Signals
) -> None:
    """And ends with 130; what was in flight is counted as interrupted."""
    out = tmp_path / "report.json"
    process = subprocess.Popen(
        command("--target", server.target, "--seconds", "600", *LOAD, "--out", str(out)),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    before = answered(server)
    deadline_s = time.monotonic() + 60
    while answered(server) < before + 5:
        assert time.monotonic() < deadline_s
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["interrupted"] is True
    assert report["statuses"]["ok"] >= 1
    assert sum(report["statuses"].values()) == report["requests"]
    assert f"all: {report['requests']} requests" in stdout
    assert "warning: The run was interrupted" in stderr


def answered(server: ServerProcess) -> float:
    """Requests that the server has answered."""
    page = server.get("/metrics")[1]
    found = re.findall(
        r'^inference_requests_total\{.*status="ok".*\} ([\d.e+]+)$', page, re.MULTILINE
    )
    return sum(map(float, found))


def test_nobody_there_has_an_exit_code_of_its_own() -> None:
    """And the sentence that says what to do."""
    ran = bench("--target", "127.0.0.1:1", "--requests", "1")
    assert ran.returncode == 3
    assert ran.stderr == (
        "error: no server answers at 127.0.0.1:1. Start one with `inference-unlimited serve`, or "
        "name another with --target.\n"
    )


def test_an_unknown_variant_is_the_server_s_to_refuse(server: ServerProcess) -> None:
    """In its own words, before any load."""
    ran = bench("--target", server.target, "--variant", "nobody", "--requests", "1")
    assert ran.returncode == 1
    assert "'nobody' is unknown" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt-tokens", "many"), "--prompt-tokens: 'many' is no distribution of lengths."),
        (("--output-tokens", "uniform:9:3"), "--output-tokens: 'uniform:9:3' is no distribution"),
        (("--rate", "5", "--concurrency", "2"), "give --rate or --concurrency, not both."),
        (("--rate", "nan"), "--rate"),
        (("--seconds", "inf"), "--seconds"),
        (("--slo-duration", "inf"), "is no finite number."),
        (("--cancel-rate", "1.5"), "--cancel-rate"),
        (("--target", "nowhere"), "'nowhere' is not HOST:PORT; try localhost:50051."),
        (("--out", "/nowhere/at/all.json"), "there is no folder /nowhere/at."),
        (("--text", "{empty}"), "holds no text."),
        (("--text", "{bytes}"), "cannot be read as UTF-8"),
    ],
)
def test_wrong_options_are_told(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """Before a server is asked."""
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfa")
    paths = {name: str(tmp_path / name) for name in ("empty", "bytes")}
    ran = bench(*(argument.format(**paths) for argument in arguments))
    assert ran.returncode == 2
    assert said in " ".join(re.sub(r"[│╭╮╰╯─\s]+", " ", ran.stderr).split())


@pytest.fixture(scope="module")
def guarded(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with a certificate, which asks for a token."""
    folder = tmp_path_factory.mktemp("guarded")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext"),
            *("subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    content = {
        "model": "demo",
        "variants": {"baseline": []},
        "server": {
            "tls": {"certificate": str(certificate), "key": str(key)},
            "tokens": [{"client": "load", "env": "LOAD_SECRET"}],
        },
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    with ServerProcess(
        config,
        stderr=folder / "server.log",
        environment={"INFERENCE_UNLIMITED_STORE": str(demo_store), "LOAD_SECRET": SECRET},
    ) as server:
        server.wait_ready()
        yield server, certificate


def test_token_and_certificate_are_passed_on(guarded: tuple[ServerProcess, Path]) -> None:
    """With both it is answered, without the token refused, without the certificate not reached."""
    server, certificate = guarded
    asked = ("--target", server.target, "--requests", "6", *LOAD)
    secret = {"INFERENCE_UNLIMITED_TOKEN": SECRET}
    assert bench(*asked, "--ca", str(certificate), "--token", SECRET).returncode == 0
    both = bench(*asked, "--ca", str(certificate), **secret)
    assert both.returncode == 0, both.stderr
    assert "6 ok" in both.stdout
    nameless = bench(*asked, "--ca", str(certificate))
    assert nameless.returncode == 1
    assert "unauthenticated" in nameless.stderr
    assert SECRET not in nameless.stderr + both.stdout + both.stderr
    assert bench(*asked, **secret).returncode == 3
