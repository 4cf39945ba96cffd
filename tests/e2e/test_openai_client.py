"""OpenAI's own client against a real server: what it sends and what it can read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.comparison.server_process import ServerProcess

PROMPT = "def fibonacci(n):"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["loop", "branch"]},
    },
    "required": ["name", "size", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The embedded demo with all variants ready."""
    with ServerProcess(
        None,
        stderr=tmp_path_factory.mktemp("server") / "server.log",
        environment={"INFERENCE_UNLIMITED_STORE": str(demo_store)},
    ) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.http_url, api_key="none", max_retries=0) as client:
        yield client


def test_models_are_variants_and_routed_traffic(client: openai.OpenAI) -> None:
    """All variants of the config, and one name for whichever is chosen by weight."""
    assert {model.id for model in client.models.list()} == {"routed", "baseline", "int8", "int4"}
    assert client.models.retrieve("int8").id == "int8"
    with pytest.raises(openai.NotFoundError, match="'nobody' is unknown"):
        client.models.retrieve("nobody")


def test_completion_is_whole(client: openai.OpenAI) -> None:
    """Text, usage, finish reason, and the same text for the same seed."""
    answers = [
        client.completions.create(
            model="int8", prompt=PROMPT, max_tokens=12, temperature=0.9, seed=5
        )
        for _ in range(2)
    ]
    assert answers[0].choices[0].text == answers[1].choices[0].text != ""
    assert answers[0].choices[0].finish_reason == "length"
    usage = answers[0].usage
    assert usage is not None
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert answers[0].object == "text_completion"


def test_stream_is_the_whole_in_pieces(client: openai.OpenAI) -> None:
    """Greedy pieces are the greedy whole; the usage comes last."""
    asked: dict[str, Any] = {
        "model": "baseline",
        "prompt": PROMPT,
        "max_tokens": 20,
        "temperature": 0,
    }
    whole = client.completions.create(**asked)
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 10


def test_choices_prompts_and_echo(client: openai.OpenAI) -> None:
    """Two prompts with two choices each, in order; choice i is drawn with seed + i."""
    both = client.completions.create(
        model="baseline", prompt=[PROMPT, "import "], n=2, seed=3, max_tokens=6, echo=True
    )
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in both.choices]
    assert all(text.startswith(PROMPT) for text in texts[:2])
    assert all(text.startswith("import ") for text in texts[2:])
    alone = client.completions.create(
        model="baseline", prompt=PROMPT, seed=4, max_tokens=6, echo=True
    )
    assert alone.choices[0].text == texts[1]
    assert both.usage is not None
    assert both.usage.completion_tokens == 24


def test_logprobs_of_prompt_and_answer(client: openai.OpenAI) -> None:
    """As evaluation harnesses ask: echo, logprobs, and nothing generated."""
    scored = client.completions.create(
        model="baseline", prompt=PROMPT, max_tokens=0, echo=True, logprobs=2
    )
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == PROMPT
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.top_logprobs is not None
    assert [len(top) for top in logprobs.top_logprobs[1:]] == [2] * (len(logprobs.tokens) - 1)
    assert logprobs.text_offset is not None
    assert logprobs.text_offset[0] == 0
    answered = client.completions.create(
        model="baseline", prompt=PROMPT, max_tokens=3, logprobs=1, temperature=0
    )
    top = answered.choices[0].logprobs
    assert top is not None
    assert top.tokens is not None
    assert top.top_logprobs is not None
    assert [next(iter(best)) for best in top.top_logprobs] == top.tokens


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    """Through the model's own template; pieces are the whole."""
    asked: dict[str, Any] = {
        "model": "routed",
        "messages": [
            {"role": "system", "content": "Write Python."},
            {"role": "user", "content": [{"type": "text", "text": "add two numbers"}]},
        ],
        "max_completion_tokens": 16,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = client.chat.completions.create(**asked)
    message = whole.choices[0].message
    assert message.role == "assistant"
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert all(len(one.top_logprobs) == 3 for one in logprobs.content)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_stop_is_where_it_ends(client: openai.OpenAI) -> None:
    """Not in the text, unless asked for."""
    free = client.completions.create(model="baseline", prompt=PROMPT, max_tokens=30, temperature=0)
    text = free.choices[0].text
    stop = text[5:8]
    asked: dict[str, Any] = {"model": "baseline", "prompt": PROMPT, "max_tokens": 30}
    ended = client.completions.create(**asked, temperature=0, stop=[stop])
    assert ended.choices[0].text == text[: text.index(stop)]
    assert ended.choices[0].finish_reason == "stop"
    kept = client.completions.create(
        **asked, temperature=0, stop=stop, extra_body={"include_stop_str_in_output": True}
    )
    assert kept.choices[0].text == text[: text.index(stop) + len(stop)]


def test_structured_output_is_valid(client: openai.OpenAI) -> None:
    """A schema through the client's own argument; also in a chat."""
    answer = client.chat.completions.create(
        model="int4",
        messages=[{"role": "user", "content": "describe it"}],
        max_tokens=100,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True},
        },
    )
    content = json.loads(answer.choices[0].message.content or "")
    assert set(content) == {"name", "size", "kind"}
    assert 0 <= content["size"] <= 99
    chosen = client.completions.create(
        model="int4",
        prompt=PROMPT,
        max_tokens=40,
        extra_body={"structured_outputs": {"choice": ["yes, always", "no, never"]}},
    )
    assert chosen.choices[0].text in ("yes, always", "no, never")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"temperature": -1}, "sampling.temperature"),
        ({"n": 0}, "sampling.n"),
        ({"n": 1000}, "sampling.n"),
        ({"max_tokens": 10**9}, "sampling.max_tokens"),
        ({"prompt": ""}, "token_ids"),
        ({"extra_body": {"temperatur": 1}}, "temperatur"),
        ({"extra_body": {"suffix": "x"}}, "suffix"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "response_format.regex"),
        ({"extra_body": {"structured_outputs": {"json": "{"}}}, "response_format.json_schema"),
        ({"prompt": [10**6]}, "token_ids"),
    ],
)
def test_bad_input_names_its_field(
    client: openai.OpenAI, change: dict[str, Any], field: str
) -> None:
    """With the status that the client makes its own error of."""
    if field == "token_ids" and change == {"prompt": ""}:
        change, field = {"prompt": []}, "prompt"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "baseline", "prompt": "x", "max_tokens": 2, **change})
    assert caught.value.param == field
    assert field.rpartition(".")[2] in str(caught.value)


def test_unknown_model_and_path(client: openai.OpenAI, server: ServerProcess) -> None:
    """404, with what there is."""
    with pytest.raises(openai.NotFoundError, match="use one of: baseline, int8, int4"):
        client.completions.create(model="gpt-9", prompt="x")
    assert httpx.get(f"{server.http_url}/nothing").status_code == 404
    assert httpx.get(f"{server.http_url}/completions").status_code == 405
    assert httpx.post(f"{server.http_url}/completions", content=b"{").status_code == 400
    deep = b"[" * 100_000
    assert httpx.post(f"{server.http_url}/completions", content=deep).status_code == 400


def test_leaving_frees_the_engine(client: openai.OpenAI, server: ServerProcess) -> None:
    """Who closes a stream, or gives up waiting for a whole answer, holds no slot."""
    stream = client.completions.create(
        model="baseline",
        prompt=PROMPT,
        max_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(
            model="baseline",
            prompt=PROMPT,
            max_tokens=900,
            timeout=0.3,
            extra_body={"ignore_eos": True},
        )

    def idle() -> bool | None:
        _, page = server.get("/metrics")
        lines = [
            line for line in page.splitlines() if line.startswith("inference_running_requests{")
        ]
        return all(line.endswith(" 0.0") for line in lines) or None

    assert server.wait_for(idle, 10)
