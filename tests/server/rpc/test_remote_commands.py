"""``generate`` and ``variants`` against a real server, as a user would run them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from protos import inference_pb2 as pb
from server.catalog import BudgetState, BudgetView, BuildProgress
from server.cli import application
from server.commands.generate import _CONTROL, _figures
from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from artifacts.tokenizer import Tokenizer
    from tests.server.conftest import Bench

pytestmark = pytest.mark.timeout(60)


async def run(*arguments: str, stdin: str | None = None) -> Result:
    """Run a command in a thread, beside the server's loop."""
    runner = CliRunner(env={"COLUMNS": "160"})
    return await asyncio.to_thread(runner.invoke, application(), list(arguments), stdin)


@pytest.fixture
def target(port: int) -> str:
    return f"127.0.0.1:{port}"


def say(bench: Bench, tokenizer: Tokenizer, text: str) -> list[int]:
    ids = list(tokenizer.encode(text))
    bench.engine.script = lambda _: [[token] for token in ids]
    return ids


async def test_generate_prints_the_text(
    bench: Bench, target: str, byte_level_tokenizer: Tokenizer
) -> None:
    """The text, a newline, and nothing else on stdout."""
    say(bench, byte_level_tokenizer, "return 東京 🎉")
    result = await run("generate", "--prompt", "x", "--target", target)
    assert (result.exit_code, result.stdout) == (ExitCode.OK, "return 東京 🎉\n")


async def test_generate_as_json_is_one_object(
    bench: Bench, target: str, byte_level_tokenizer: Tokenizer
) -> None:
    """Text, ids, reason, variant, usage and timings."""
    ids = say(bench, byte_level_tokenizer, "one two STOP three")
    result = await run(
        "generate", "--prompt", "x", "--target", target, "--variant", "int8", "--json",
        "--stop", "STOP", "--stop", "never", "--seed", str(2**64 - 1),
    )  # fmt: skip
    assert result.exit_code == ExitCode.OK, result.output
    answer = json.loads(result.stdout)
    assert (
        answer["text"],
        answer["finish_reason"],
        answer["stop_string"],
        answer["variant"],
    ) == ("one two ", "stop", "STOP", "int8")
    assert ids[: len(answer["token_ids"])] == answer["token_ids"]
    assert len(answer["token_ids"]) == answer["usage"]["completion_tokens"]
    assert answer["usage"]["cached_tokens"] == 1
    assert answer["seed"] == 2**64 - 1
    timings = answer["timings"]
    assert (
        timings["queue_seconds"],
        timings["prefill_seconds"],
        timings["decode_seconds"],
    ) == (0.25, 0.5, 0.75)
    assert 0 < timings["first_token_seconds"] <= timings["total_seconds"]


async def test_options_reach_the_server_only_when_given(bench: Bench, target: str) -> None:
    """What is not given stays unset, so the model's own defaults apply."""
    await run("generate", "--prompt", "x", "--target", target)
    await run(
        "generate", "--prompt", "-", "--target", target, "--max-tokens", "5", "--min-tokens", "1",
        "--temperature", "0", "--top-k", "3", "--top-p", "0.5", "--min-p", "0.25", "--seed", "9",
        stdin="from stdin",
    )  # fmt: skip
    unset, given = (submit.sampling for submit in bench.engine.submits)
    assert (
        unset.temperature,
        unset.top_k,
        unset.top_p,
        unset.min_p,
        unset.seed,
    ) == (1.0, 0, 1.0, 0.0, 77)
    assert (
        given.temperature,
        given.top_k,
        given.top_p,
        given.min_p,
        given.seed,
        given.max_tokens,
        given.min_tokens,
    ) == (0.0, 3, 0.5, 0.25, 9, 5, 1)
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("from stdin") == bench.engine.submits[1].prompt


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--temperature", "-1"), "sampling.temperature"),
        (("--variant", "int9"), "use one of: baseline, int8"),
        (("--variant", "broken"), "the disk is full"),
    ],
)
async def test_a_refusal_is_told_on_stderr(
    target: str, arguments: tuple[str, ...], words: str
) -> None:
    """The server's own sentence, exit code 1, nothing on stdout."""
    result = await run("generate", "--prompt", "x", "--target", target, *arguments)
    assert (result.exit_code, result.stdout) == (ExitCode.FAILURE, "")
    assert words in result.stderr


@pytest.mark.parametrize("command", [("generate", "--prompt", "x"), ("variants",)])
async def test_no_server_is_a_code_of_its_own(
    command: tuple[str, ...], unused_tcp_port: int
) -> None:
    """Exit code 3, at once, with what to do."""
    result = await run(*command, "--target", f"127.0.0.1:{unused_tcp_port}")
    assert (result.exit_code, result.stdout) == (ExitCode.UNREACHABLE, "")
    assert "no server answers" in result.stderr
    assert "inference-unlimited serve" in result.stderr


@pytest.mark.parametrize("target", ["localhost", ":50051", "localhost:http", ""])
async def test_a_wrong_target_is_wrong_usage(target: str) -> None:
    """Exit code 2 names the option."""
    result = await run("variants", "--target", target)
    assert result.exit_code == ExitCode.USAGE
    assert "--target" in result.stderr


async def test_a_call_out_of_time_is_told(bench: Bench, target: str) -> None:
    """--timeout bounds the whole call."""
    bench.engine.gate = threading.Semaphore(0)
    result = await run("generate", "--prompt", "x", "--target", target, "--timeout", "0.2")
    assert result.exit_code == ExitCode.FAILURE
    assert "deadline_exceeded" in result.stderr
    await bench.until(lambda: not bench.engine.running)


async def test_variants_are_a_table(bench: Bench, target: str) -> None:
    """State, size, quality and chain of each; why one failed, and how far one is."""
    bench.catalog.change("slow", progress=BuildProgress("prune", 0, 2, 0.5))
    result = await run("variants", "--target", target)
    assert result.exit_code == ExitCode.OK, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "baseline (default)" in lines["baseline"]
    for cell in ("ready", "0.0 MB", "0.0100", "98.0%", "quantize(bits=8)"):
        assert cell in lines["int8"]
    assert "building prune (1/2, 50%)" in lines["slow"]
    assert "broken: the disk is full" in result.stdout
    assert "int8: slow kernel: MatMul (first and 1 more): 4.2 MB" in result.stdout


@pytest.mark.parametrize(
    ("state", "left_out", "shown"),
    [
        (BudgetState.WITHIN, 0, "int8 ready 0.0 MB"),
        (BudgetState.WITHIN, 1, "ready (without the last 1 of its stages)"),
        (BudgetState.EXCEEDED, 0, "ready (over budget)"),
        (BudgetState.UNVERIFIED, 0, "ready (unverified)"),
    ],
)
async def test_variants_tell_what_is_not_as_configured(
    bench: Bench, target: str, *, state: BudgetState, left_out: int, shown: str
) -> None:
    """A table that says ready, and no more, means ready and within."""
    budget = BudgetView(state, {"kl_mean": 0.1}, ("kl_mean is 1.",), left_out)
    bench.catalog.change("int8", budget=budget)
    result = await run("variants", "--target", target)
    assert shown in " ".join(result.stdout.split())
    assert "int8: kl_mean is 1." in result.stdout
    listed = json.loads((await run("variants", "--target", target, "--json")).stdout)
    assert listed[1]["budget"]["state"] == state.value
    assert "budget" not in listed[0]


async def test_variants_tell_what_is_not_measured_yet(bench: Bench, target: str) -> None:
    """It serves, and its figures are still to come."""
    view = bench.catalog.get("int8")
    assert view is not None
    assert view.manifest is not None
    lineage = tuple(one.model_copy(update={"quality": None}) for one in view.manifest.lineage)
    bench.catalog.change("int8", manifest=view.manifest.model_copy(update={"lineage": lineage}))
    result = await run("variants", "--target", target)
    assert "int8 ready (unmeasured)" in " ".join(result.stdout.split())


async def test_variants_as_json_are_all_that_is_known(target: str) -> None:
    """One array with plain words, the chain as structure."""
    result = await run("variants", "--target", target, "--json")
    listed = json.loads(result.stdout)
    assert [variant["state"] for variant in listed] == ["ready", "ready", "building", "failed"]
    assert listed[1]["chain"] == [{"quantize": {"bits": 8}}]
    assert listed[1]["lineage"][1]["quality"]["kl_mean"] == 0.01


def test_terminals_are_not_steered_by_a_model() -> None:
    """Escape sequences are shown, newlines and tabs are kept."""
    assert "a\x1b[2Jb\n\tc".translate(_CONTROL) == "a\\x1b[2Jb\n\tc"


def test_figures_are_one_line() -> None:
    """What a person at a terminal sees behind the text."""
    finish = pb.Finish(
        reason=pb.FINISH_REASON_STOP,
        usage={"completion_tokens": 11},
        timings={"decode_seconds": 0.5},
        variant="int8",
        seed=7,
    )
    line = _figures(finish, time.monotonic())
    assert line.startswith("int8: 11 tokens in 0.0")
    assert line.endswith("s, 20.0 tokens/s, stop, seed 7")


def test_commands_start_without_the_serving_side() -> None:
    """Asking a server needs neither onnxruntime nor numpy nor the engine."""
    program = (
        "import sys; import server.client, server.commands.generate, server.commands.variants\n"
        "heavy = {'numpy', 'onnxruntime', 'tokenizers', 'pydantic', 'server.engine'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert shown.stdout.strip() == "[]"


async def test_client_messages_may_be_large(bench: Bench, stub: Any) -> None:
    """A long reason is whole in ListVariants, where it is no header."""
    bench.catalog.change("broken", error="x" * 50_000)
    listed = await stub.ListVariants(pb.ListVariantsRequest())
    assert len(listed.variants[3].error) == 50_000


async def test_a_prompt_that_is_not_utf8_is_wrong_usage(target: str) -> None:
    """Bytes of the shell arrive as lone surrogates, which no message can hold."""
    result = await run("generate", "--prompt", "a\udcff", "--target", target)
    assert result.exit_code == ExitCode.USAGE
    assert "not UTF-8" in result.output
    assert "Traceback" not in result.output
