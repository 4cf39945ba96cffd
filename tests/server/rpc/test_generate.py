"""Generate and Complete over real gRPC."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from protos import inference_pb2 as pb
from server.engine.messages import FinishReason
from server.errors import Status

if TYPE_CHECKING:
    from artifacts.tokenizer import Tokenizer
    from tests.server.conftest import Bench

PROMPT = "hello"


async def collect(call: Any) -> list[pb.GenerateResponse]:
    return [response async for response in call]


def joined(responses: list[pb.GenerateResponse]) -> str:
    return "".join(response.text for response in responses)


def request(**sampling: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=PROMPT, sampling=pb.SamplingParameters(**sampling))


def say(bench: Bench, tokenizer: Tokenizer, text: str, per_step: int = 1) -> list[int]:
    """Have the engine say a text, some tokens per step; return its ids."""
    ids = list(tokenizer.encode(text))
    bench.engine.script = lambda _: [
        ids[start : start + per_step] for start in range(0, len(ids), per_step)
    ]
    return ids


async def test_generate_streams_one_message_per_step_and_one_finish(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer
) -> None:
    """Each step is one message, and only the last has the finish with all its parts."""
    ids = say(bench, byte_level_tokenizer, "def fibonacci(n):")

    responses = await collect(stub.Generate(request()))

    assert joined(responses) == "def fibonacci(n):"
    assert [[token] for token in ids] == [list(response.token_ids) for response in responses]
    assert [False] * (len(ids) - 1) + [True] == [r.HasField("finish") for r in responses]
    finish = responses[-1].finish
    assert finish.reason == pb.FINISH_REASON_LENGTH
    assert finish.WhichOneof("stopped_by") is None
    assert pb.Usage(
        prompt_tokens=len(byte_level_tokenizer.encode(PROMPT)),
        completion_tokens=len(ids),
        cached_tokens=1,
    ) == (finish.usage)
    timings = pb.Timings(queue_seconds=0.25, prefill_seconds=0.5, decode_seconds=0.75)
    assert timings == finish.timings
    assert (finish.variant, finish.seed) == ("baseline", 77)
    assert bench.catalog.views["baseline"].artifact == finish.artifact


async def test_several_tokens_of_a_step_share_a_message(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer
) -> None:
    """A step that gives three tokens is still one message."""
    ids = say(bench, byte_level_tokenizer, "one two three four five six seven", per_step=3)
    responses = await collect(stub.Generate(request()))
    assert -(-len(ids) // 3) == len(responses)
    assert ids == [token for response in responses for token in response.token_ids]


async def test_complete_is_the_stream_in_one(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer
) -> None:
    """The unary method gives what the stream's messages give together."""
    say(bench, byte_level_tokenizer, "the very same words")
    responses = await collect(stub.Generate(request(logprobs=2)))
    whole = await stub.Complete(request(logprobs=2))
    assert joined(responses) == whole.text
    assert [t for response in responses for t in response.token_ids] == list(whole.token_ids)
    assert [p for response in responses for p in response.logprobs] == list(whole.logprobs)
    assert responses[-1].finish == whole.finish


async def test_prompts_are_text_or_ids(bench: Bench, stub: Any) -> None:
    """Token ids reach the engine as they are, text by the tokenizer."""
    await stub.Complete(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[7, 8, 9])))
    await stub.Complete(request())
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    assert [(7, 8, 9), tokenizer.encode(PROMPT)] == [s.prompt for s in bench.engine.submits]


async def test_every_parameter_reaches_the_engine(bench: Bench, stub: Any) -> None:
    """What the caller sets is what the engine is told."""
    await stub.Complete(
        request(
            temperature=0.5,
            top_k=7,
            top_p=0.25,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=-1.5,
            frequency_penalty=0.75,
            logit_bias={9: -3.5, 4: 2.0},
            seed=2**64 - 1,
            max_tokens=3,
            min_tokens=2,
            stop_token_ids=[11, 12],
            ignore_eos=True,
            logprobs=0,
        )
    )
    sampling = bench.engine.submits[0].sampling
    assert (
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
    ) == (0.5, 7, 0.25, 0.125)
    assert (
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
    ) == (1.5, -1.5, 0.75)
    assert sampling.logit_bias == ((4, 2.0), (9, -3.5))
    assert (sampling.seed, sampling.max_tokens, sampling.min_tokens) == (2**64 - 1, 3, 2)
    assert ({11, 12}, {0, 5}) == (sampling.stop_token_ids, sampling.eos_token_ids)
    assert (sampling.ignore_eos, sampling.logprobs) == (True, 0)


async def test_unset_length_is_what_fits(bench: Bench, stub: Any) -> None:
    """Context 128: a prompt of 100 leaves 28."""
    await stub.Complete(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[9] * 100)))
    assert bench.engine.submits[0].sampling.max_tokens == 28


@pytest.mark.parametrize("per_step", [1, 4])
async def test_a_stop_string_across_tokens_ends_the_text_before_it(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer, per_step: int
) -> None:
    """The text ends before the stop, and the tokens count up to the one that completed it."""
    ids = say(bench, byte_level_tokenizer, "return 42\n\nclass Next: and on and on", per_step)
    stop = "42\n\ncl"
    through = next(
        count
        for count in range(len(ids) + 1)
        if stop in byte_level_tokenizer.decode_exactly(ids[:count])
    )
    # The engine waits after the step that completes the stop: only a cancel can end it.
    bench.engine.gate = threading.Semaphore(-(-through // per_step))
    responses = await collect(stub.Generate(request(stop=["nowhere", stop])))

    assert joined(responses) == "return "
    finish = responses[-1].finish
    assert (pb.FINISH_REASON_STOP, stop) == (finish.reason, finish.stop_string)
    assert through == finish.usage.completion_tokens
    assert ids[:through] == [token for response in responses for token in response.token_ids]
    await bench.until(lambda: bench.core.unfinished == 0)
    assert [cancel.finish for cancel in bench.engine.cancels] == [FinishReason.STOP]
    assert [record.status for record in bench.recorder.records] == [Status.OK]
    assert [through] == [record.completion_tokens for record in bench.recorder.records]


async def test_a_stop_string_with_the_last_token_needs_no_cancel(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer
) -> None:
    """When the engine ends in the same step, the stop string is still the reason."""
    say(bench, byte_level_tokenizer, "abc stop")
    responses = await collect(stub.Generate(request(stop=["stop"])))
    assert joined(responses) == "abc "
    assert responses[-1].finish.stop_string == "stop"
    assert bench.engine.cancels == []


async def test_what_was_held_back_is_shown_at_the_end(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer
) -> None:
    """The beginning of a stop string that never came is text after all."""
    say(bench, byte_level_tokenizer, "tell me <en")
    responses = await collect(stub.Generate(request(stop=["<end>"])))
    assert joined(responses) == "tell me <en"
    assert responses[-1].finish.reason == pb.FINISH_REASON_LENGTH


async def test_stops_are_ignored_before_min_tokens(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer
) -> None:
    """A stop string within the first min_tokens tokens is text; a later one ends it."""
    first = byte_level_tokenizer.encode("a stop, ")
    say(bench, byte_level_tokenizer, "a stop, then a stop and more")
    responses = await collect(stub.Generate(request(stop=["stop"], min_tokens=len(first))))
    assert joined(responses) == "a stop, then a "


async def test_a_stop_token_counts_but_is_no_text(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer
) -> None:
    """A stop token that spells something does not show, and the finish names it."""
    ids = say(bench, byte_level_tokenizer, "yes no")
    responses = await collect(stub.Generate(request(stop_token_ids=[ids[-1]])))
    finish = responses[-1].finish
    assert byte_level_tokenizer.decode_exactly(ids[:-1]) == joined(responses)
    assert (pb.FINISH_REASON_STOP, ids[-1]) == (finish.reason, finish.stop_token_id)
    assert len(ids) == finish.usage.completion_tokens


async def test_an_end_of_sequence_id_stops_and_is_no_text(bench: Bench, stub: Any) -> None:
    """All of the model's end ids stop, and ignore_eos goes past them without showing them."""
    bench.engine.script = lambda _: [[70], [5], [71]]
    stopped = await stub.Complete(request())
    assert (list(stopped.token_ids), stopped.finish.stop_token_id) == ([70, 5], 5)
    passed = await stub.Complete(request(ignore_eos=True))
    assert list(passed.token_ids) == [70, 5, 71]
    assert "<|end|>" not in passed.text


async def test_half_a_character_is_never_sent(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer
) -> None:
    """A character of several tokens comes with its last one, in whole."""
    text = "né 東京 🎉"
    ids = say(bench, byte_level_tokenizer, text)
    responses = await collect(stub.Generate(request()))
    assert text == joined(responses)
    assert len(ids) == len(responses)
    assert not any("\N{REPLACEMENT CHARACTER}" in response.text for response in responses)
    assert any(not response.text for response in responses), "the text has split characters"


async def test_a_character_cut_by_the_length_is_replaced_at_the_end(
    bench: Bench, stub: Any, byte_level_tokenizer: Tokenizer
) -> None:
    """max_tokens in the middle of a character: the last message says that there was something."""
    ids = say(bench, byte_level_tokenizer, "🎉")
    responses = await collect(stub.Generate(request(max_tokens=len(ids) - 1)))
    assert [""] * (len(ids) - 2) + ["\N{REPLACEMENT CHARACTER}"] == [r.text for r in responses]


async def test_logprobs_are_sent_only_when_asked_for(bench: Bench, stub: Any) -> None:
    """The chosen token's log-probability and as many alternatives as wanted, per token."""
    bench.engine.script = lambda _: [[70, 71], [72]]
    without = await stub.Complete(request())
    chosen = await stub.Complete(request(logprobs=0))
    two = await stub.Complete(request(logprobs=2))
    assert list(without.logprobs) == []
    assert [(entry.token_id, entry.logprob, list(entry.top)) for entry in chosen.logprobs] == [
        (70, -0.5, []),
        (71, -0.5, []),
        (72, -0.5, []),
    ]
    assert [(other.token_id, other.logprob) for other in two.logprobs[0].top] == [
        (70, -0.5),
        (71, -1.5),
    ]


async def test_the_named_variant_answers(stub: Any) -> None:
    """A name reaches its variant; no name the first of the config."""
    named = await stub.Complete(pb.GenerateRequest(text="x", variant="int8"))
    unnamed = await stub.Complete(pb.GenerateRequest(text="x"))
    assert (named.finish.variant, unnamed.finish.variant) == ("int8", "baseline")


async def test_traffic_routes_and_keys_stick(bench: Bench, stub: Any) -> None:
    """With traffic, keys spread over the ready variants and each keeps its own."""
    bench.catalog.traffic = {"baseline": 0.4, "int8": 0.4, "slow": 0.2}

    async def variant(key: str) -> str:
        answer = await stub.Complete(pb.GenerateRequest(text="x", routing_key=key))
        return str(answer.finish.variant)

    keys = [f"user-{number}" for number in range(12)]
    first = [await variant(key) for key in keys]
    assert {"baseline", "int8"} == set(first)
    assert first == [await variant(key) for key in keys]


async def test_telemetry_hears_of_each_token_and_request_once(bench: Bench, stub: Any) -> None:
    """One first token, one gap per further token, one record with the engine's timings."""
    bench.engine.script = lambda _: [[70], [71, 72, 73], [74]]
    await stub.Complete(request())
    recorder = bench.recorder
    await bench.until(lambda: recorder.records)
    assert [variant for variant, _ in recorder.first] == ["baseline"]
    assert [count for _, _, count in recorder.gaps] == [3, 1]
    (record,) = recorder.records
    assert (record.status, record.variant, record.completion_tokens) == (Status.OK, "baseline", 5)
    assert record.timings is not None
    assert 0 <= recorder.first[0][1] <= record.duration_s
