"""What a call may ask beside sampling: choices, echo, scores, conversations, formats."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from artifacts.detokenizer import decode_all
from server.calls import Conversation, FormatKind, GenerateCall, Output, ResponseFormat
from server.engine.messages import FailureCode, FinishReason, Submit
from server.errors import (
    InvalidRequestError,
    NothingFollowsError,
    OverloadedError,
    PreconditionError,
    Status,
)
from server.parameters import SamplingCall

if TYPE_CHECKING:
    from tests.server.conftest import Bench

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
LAID_OUT = "<|endoftext|><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"


async def ask(bench: Bench, prompt: Any = "def f(x):", **more: Any) -> list[Output]:
    call = GenerateCall(prompt, received_s=bench.core.clock(), **more)
    async with aclosing(bench.core.generate(call)) as outputs:
        return [output async for output in outputs]


def text_of(outputs: list[Output], choice: int = 0) -> str:
    return "".join(output.text for output in outputs if output.choice == choice)


def ids(bench: Bench, text: str) -> tuple[int, ...]:
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    return tokenizer.encode(text)


def text(bench: Bench, token_ids: Any) -> str:
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    return decode_all(tokenizer, token_ids)


async def test_each_choice_has_a_seed_and_one_finish(bench: Bench) -> None:
    """Choice i is drawn with seed + i; usage counts the prompt once; places are n."""
    bench.engine.script = lambda submit: [[100 + submit.sampling.seed % 10]] * 3
    outputs = await ask(bench, sampling=SamplingCall(n=3, seed=2**64 - 2))
    assert [submit.sampling.seed for submit in bench.engine.submits] == [2**64 - 2, 2**64 - 1, 0]
    finishes = {output.choice: output.finish for output in outputs if output.finish}
    assert sorted(finishes) == [0, 1, 2]
    assert sum(output.finish is not None for output in outputs) == 3
    assert finishes[1] is not None
    assert finishes[1].seed == 2**64 - 1
    for choice, seed in enumerate((2**64 - 2, 2**64 - 1, 0)):
        assert text_of(outputs, choice) == text(bench, [100 + seed % 10] * 3)
    (record,) = bench.recorder.records
    assert (record.status, record.completion_tokens) == (Status.OK, 9)
    assert record.prompt_tokens == len(ids(bench, "def f(x):"))
    assert len(bench.recorder.first) == 1


async def test_choices_take_places_and_give_them_back(bench: Bench) -> None:
    """Four slots and two places to wait: eight choices never fit, six do, again and again."""
    bench.engine.script = lambda _: [[70]] * 2
    with pytest.raises(
        InvalidRequestError, match=r"sampling\.n: 8 is more than the variant takes; use at most 6"
    ):
        await ask(bench, sampling=SamplingCall(n=8))
    for _ in range(3):
        await ask(bench, sampling=SamplingCall(n=6))
    bench.engine.gate = threading.Semaphore(0)
    first = asyncio.create_task(ask(bench, sampling=SamplingCall(n=4)))
    await bench.until(lambda: len(bench.engine.running) == 4)
    with pytest.raises(OverloadedError):
        await ask(bench, sampling=SamplingCall(n=3))
    bench.engine.gate.release(100)
    await first


async def test_one_choices_failure_ends_all(bench: Bench) -> None:
    """A call has one status: the others are cancelled in the engine."""
    bench.engine.script = lambda _: [[70]] * 50
    bench.engine.gate = threading.Semaphore(4)
    bench.engine.failures = {"r2": FailureCode.INVALID_ARGUMENT}
    with pytest.raises(NothingFollowsError):
        await ask(bench, sampling=SamplingCall(n=3))
    await bench.until(lambda: not bench.engine.running)
    assert {cancel.request_id for cancel in bench.engine.cancels} == {"r1", "r3"}
    assert [record.status for record in bench.recorder.records] == [Status.INVALID_ARGUMENT]


async def test_echo_begins_every_choice(bench: Bench) -> None:
    """With the text as it was sent, or what token ids and a cut prompt are as text."""
    bench.engine.script = lambda _: [[75], [76]]
    plain = text_of(await ask(bench))
    echoed = await ask(bench, echo=True, sampling=SamplingCall(n=2))
    assert [text_of(echoed, choice) for choice in (0, 1)] == ["def f(x):" + plain] * 2
    prompt = ids(bench, "def f(x):")
    assert text_of(await ask(bench, list(prompt), echo=True)) == "def f(x):" + plain
    cut = await ask(bench, echo=True, truncate_prompt_tokens=2)
    assert text_of(cut) == text(bench, prompt[-2:]) + plain


async def test_a_cut_prompt_keeps_its_end(bench: Bench) -> None:
    """And says how much was left out; one that is short enough is left alone."""
    prompt = ids(bench, "def f(x):")
    for kept, expected in ((2, prompt[-2:]), (100, prompt)):
        outputs = await ask(bench, truncate_prompt_tokens=kept)
        finish = outputs[-1].finish
        assert finish is not None
        assert bench.engine.submits[-1].prompt == expected
        assert finish.truncated_tokens == len(prompt) - len(expected)
        assert finish.usage.prompt_tokens == len(expected)
    with pytest.raises(InvalidRequestError, match="truncate_prompt_tokens"):
        await ask(bench, truncate_prompt_tokens=0)


async def test_a_prompt_too_long_can_be_cut_to_fit(bench: Bench) -> None:
    """The error names the field that helps."""
    long = "x = 1\n" * 200
    with pytest.raises(InvalidRequestError, match="set truncate_prompt_tokens"):
        await ask(bench, long)
    outputs = await ask(bench, long, truncate_prompt_tokens=50)
    assert outputs[-1].finish is not None


async def test_prompt_scores_come_once_with_the_first_token_bare(bench: Bench) -> None:
    """Every token of the prompt, in order; the first has nothing before it."""
    bench.engine.script = lambda _: [[70]] * 2
    prompt = ids(bench, "def f(x):")
    outputs = await ask(bench, prompt_logprobs=2, sampling=SamplingCall(n=2))
    scored = [token for output in outputs for token in output.scored]
    assert [token.token_id for token in scored] == list(prompt)
    assert scored[0].logprob is None
    assert all(token.logprob == -0.25 and len(token.top) == 2 for token in scored[1:])
    assert [submit.scoring is None for submit in bench.engine.submits] == [False, True]


async def test_scoring_alone_generates_nothing(bench: Bench) -> None:
    """``max_tokens`` 0 is for that, and for nothing else."""
    outputs = await ask(bench, prompt_logprobs=0, sampling=SamplingCall(max_tokens=0))
    assert text_of(outputs) == ""
    assert outputs[-1].finish is not None
    assert outputs[-1].finish.usage.completion_tokens == 0
    with pytest.raises(InvalidRequestError, match=r"max_tokens: 0 generates nothing"):
        await ask(bench, sampling=SamplingCall(max_tokens=0))
    one = await ask(bench, [70], prompt_logprobs=1, sampling=SamplingCall(max_tokens=0))
    assert [token.token_id for output in one for token in output.scored] == [70]


async def test_the_stop_is_part_of_the_text_when_asked(bench: Bench) -> None:
    """A stop string, also over several tokens, and a stop token that is text."""
    tokens = [list(pair) for pair in zip(ids(bench, "one two three four"), strict=False)]
    bench.engine.script = lambda _: tokens
    stop = SamplingCall(stop=["o thr"])
    assert text_of(await ask(bench, sampling=stop)) == "one tw"
    assert text_of(await ask(bench, sampling=replace(stop, include_stop=True))) == "one two thr"
    last = SamplingCall(stop_token_ids=[tokens[1][0]])
    assert text_of(await ask(bench, sampling=last)) == text(bench, tokens[0])
    kept = await ask(bench, sampling=replace(last, include_stop=True))
    assert text_of(kept) == text(bench, [tokens[0][0], tokens[1][0]])


async def test_special_tokens_are_shown_when_asked(bench: Bench) -> None:
    """They are no text unless the caller says so."""
    special = ids(bench, "<|user|>")[0]
    bench.engine.script = lambda _: [[70], [special], [71]]
    assert text_of(await ask(bench)) == text(bench, [70, 71])
    shown = await ask(bench, sampling=SamplingCall(skip_special_tokens=False))
    assert "<|user|>" in text_of(shown)


async def test_time_and_priority_go_to_the_engine(bench: Bench) -> None:
    """Seconds count from when the request was read."""
    call = GenerateCall(
        "x", received_s=1000.0, priority=-5, sampling=SamplingCall(max_time_seconds=2.5)
    )
    async with aclosing(bench.core.generate(call)) as outputs:
        async for _ in outputs:
            pass
    (submit,) = bench.engine.submits
    assert (submit.priority, submit.stop_s) == (-5, 1002.5)
    with pytest.raises(InvalidRequestError, match="priority: 2000 is above 1000"):
        await ask(bench, priority=2000)


async def test_bad_words_are_spelt_in_both_ways(bench: Bench) -> None:
    """At the beginning of a text and behind a space."""
    await ask(bench, sampling=SamplingCall(bad_words=["return"], allowed_token_ids=[7, 5, 7]))
    (submit,) = bench.engine.submits
    spelt = {text(bench, word) for word in submit.sampling.bad_words}
    assert spelt == {"return", " return"}
    assert submit.sampling.allowed_token_ids == (7, 5)


async def test_a_conversation_is_laid_out_by_the_models_template(bench: Bench) -> None:
    """Its special tokens are the template's, and nothing is put around it."""
    await ask(bench, Conversation(MESSAGES))
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    expected = tokenizer.encode(LAID_OUT, add_special_tokens=False)
    assert bench.engine.submits[-1].prompt == expected
    going_on = [*MESSAGES, {"role": "assistant", "content": "Hello the"}]
    await ask(bench, Conversation(going_on, continues=True))
    expected = tokenizer.encode(LAID_OUT + "Hello the", add_special_tokens=False)
    assert bench.engine.submits[-1].prompt == expected


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        (Conversation([]), "messages: is empty; send at least one"),
        (Conversation([{"content": "x"}]), "messages[0].role: is not set"),
        (Conversation([{"role": "user"}]), "messages: the model's chat template refuses them"),
        (Conversation([{"role": "r" * 65, "content": ""}]), "messages[0].role: has 65 bytes"),
        (Conversation(MESSAGES * 600), "messages: has 1200 messages, and the limit is 1024"),
        (Conversation([{"role": "user", "content": "x" * (1 << 20)}]), "messages: has 10486"),
        (Conversation(MESSAGES, arguments={"messages": 1}), "template_arguments: names 'messages'"),
        (Conversation([{"role": "user"}], continues=True), "continue_final_message: the last"),
    ],
)
async def test_conversations_are_checked(
    bench: Bench, conversation: Conversation, said: str
) -> None:
    """Each error is the caller's and names the field."""
    with pytest.raises(InvalidRequestError) as caught:
        await ask(bench, conversation)
    assert str(caught.value).startswith(said)
    assert bench.recorder.records[-1].status is Status.INVALID_ARGUMENT


async def test_a_template_error_names_its_line(bench: Bench) -> None:
    """And costs the caller alone."""
    with pytest.raises(InvalidRequestError, match="in its line 1"):
        await ask(bench, Conversation([{"role": "user"}]))
    await ask(bench, Conversation(MESSAGES))


async def test_a_model_without_template_says_so(bench: Bench) -> None:
    """The same model still takes texts."""
    bench.catalog.change("baseline", template=None)
    with pytest.raises(PreconditionError, match="has no chat template"):
        await ask(bench, Conversation(MESSAGES))
    assert bench.recorder.records[-1].status is Status.FAILED_PRECONDITION
    await ask(bench, "Hi")


async def test_a_format_becomes_a_constraint_for_each_choice(bench: Bench) -> None:
    """Compiled once, and a state of its own for each."""
    schema = ResponseFormat(FormatKind.JSON_SCHEMA, json.dumps({"type": "integer"}))
    await ask(bench, response_format=schema, sampling=SamplingCall(n=2))
    first, second = (submit.constraint for submit in bench.engine.submits)
    assert first is not None
    assert second is not None
    assert first is not second


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (ResponseFormat(FormatKind.REGEX, ""), "response_format.regex: is empty"),
        (ResponseFormat(FormatKind.REGEX, "("), "response_format.regex: cannot be kept to"),
        (ResponseFormat(FormatKind.JSON_SCHEMA, "{"), "response_format.json_schema: is no valid"),
        (ResponseFormat(FormatKind.JSON_SCHEMA, '{"type": "x"}'), "response_format.json_schema: "),
        (ResponseFormat(FormatKind.JSON_SCHEMA, "3"), "response_format.json_schema: "),
        (ResponseFormat(FormatKind.GRAMMAR, "start: nothing"), "response_format.grammar: cannot"),
        (ResponseFormat(FormatKind.CHOICE), "response_format.choice: names no text"),
        (ResponseFormat(FormatKind.CHOICE, choices=("a", "")), "response_format.choice: names no"),
        (ResponseFormat(FormatKind.CHOICE, choices=("a",) * 1025), "response_format.choice: has"),
        (ResponseFormat(FormatKind.REGEX, "a" * 70_000), "response_format.regex: has 70000 bytes"),
    ],
)
async def test_formats_are_checked(bench: Bench, wanted: ResponseFormat, said: str) -> None:
    """What cannot be kept to is the caller's error, and the next request is served."""
    with pytest.raises(InvalidRequestError) as caught:
        await ask(bench, response_format=wanted)
    assert str(caught.value).startswith(said)
    await ask(bench)


async def test_min_tokens_and_a_format_contradict(bench: Bench) -> None:
    """An end that is held back may be all that is allowed."""
    with pytest.raises(InvalidRequestError, match="min_tokens: cannot be kept to together"):
        await ask(
            bench,
            response_format=ResponseFormat(FormatKind.REGEX, "a"),
            sampling=SamplingCall(min_tokens=3),
        )


async def test_a_dead_end_tells_the_caller_why(bench: Bench) -> None:
    """The engine's sentence reaches the caller, who can change the request."""
    bench.engine.script = lambda _: [[70]] * 5
    bench.engine.failures = {"r1": FailureCode.INVALID_ARGUMENT}
    with pytest.raises(NothingFollowsError, match="a secret of the engine"):
        await ask(bench)


async def test_a_finish_by_time_is_a_good_end(bench: Bench) -> None:
    """The reason reaches the caller as it is."""
    waiting: list[Submit] = bench.engine.submits
    bench.engine.script = lambda _: [[70]] * 50
    bench.engine.gate = threading.Semaphore(2)
    answer = asyncio.create_task(ask(bench))
    await bench.until(lambda: waiting and not bench.engine.gate._value)  # type: ignore[union-attr]
    from server.engine.messages import Finished, Timings, Usage

    bench.core.deliver([Finished("r1", FinishReason.TIME, Usage(1, 2, 0), Timings(0.0, 0.0, 0.0))])
    outputs = await answer
    assert outputs[-1].finish is not None
    assert outputs[-1].finish.reason is FinishReason.TIME
    assert [record.status for record in bench.recorder.records] == [Status.OK]
