"""Structured output on the real engine: valid documents under load, and grammars that explode."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import jsonschema_rs
import llguidance
import numpy as np
import pytest
import tokenizers
import yaml

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from server.comparison.server_process import ServerProcess
from server.grammar_compiler import compile_grammar, read_vocabulary

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"enum": ["small", "large"]},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "size", "ok"],
    "additionalProperties": False,
}
REGEX = r"[a-f]{2,6}-[0-9]{3}"
CHOICES = ["yes", "no", "maybe", "not at all"]
GRAMMAR = 'start: "(" pair ("," pair){0,2} ")"\npair: /[a-z]{1,3}/ "=" /[0-9]{1,2}/'
GRAMMAR_WORDS = re.compile(r"\([a-z]{1,3}=[0-9]{1,2}(,[a-z]{1,3}=[0-9]{1,2}){0,2}\)")
DEEP = "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(3000)) + '\nr3000: "a"'

FORMATS: list[tuple[pb.ResponseFormat, Callable[[str], object]]] = [
    (
        pb.ResponseFormat(json_schema=json.dumps(SCHEMA)),
        lambda text: jsonschema_rs.is_valid(SCHEMA, json.loads(text)),
    ),
    (pb.ResponseFormat(regex=REGEX), lambda text: re.fullmatch(REGEX, text)),
    (pb.ResponseFormat(grammar=GRAMMAR), GRAMMAR_WORDS.fullmatch),
    (
        pb.ResponseFormat(choice=pb.ResponseFormat.Choices(choices=CHOICES)),
        lambda text: text in CHOICES,
    ),
]


@pytest.fixture(scope="module")
def server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("structured")
    config = folder / "config.yaml"
    content = {"model": "demo", "variants": {"baseline": []}, "store": str(demo_store)}
    # A hundred at a time may wait for long where tests share a slow machine.
    engine = {"slots": 8, "max_waiting": 128, "max_length": 256, "max_queue_seconds": 240}
    content["engine"] = engine
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    with ServerProcess(config, stderr=folder / "log") as server:
        server.wait_ready()
        yield server
        assert "Traceback" not in server.log


@pytest.fixture
def ask(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.target) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)


def request(wanted: pb.ResponseFormat | None, seed: int) -> pb.GenerateRequest:
    sampling = pb.SamplingParameters(seed=seed, temperature=1.0, max_tokens=200)
    return pb.GenerateRequest(text="def f(x):", sampling=sampling, response_format=wanted)


def test_a_hundred_constrained_requests_at_once_give_a_hundred_valid_documents(ask: Any) -> None:
    """Of four kinds, each with its own seed, all under way together."""
    with ThreadPoolExecutor(100) as pool:
        answers = [
            (accepts, pool.submit(ask.Complete, request(wanted, seed), timeout=240))
            for seed, (wanted, accepts) in zip(range(100), itertools.cycle(FORMATS), strict=False)
        ]
        done = [(accepts, answer.result()) for accepts, answer in answers]
    assert all(answer.finish.reason == pb.FINISH_REASON_STOP for _, answer in done)
    wrong = [answer.text for accepts, answer in done if not accepts(answer.text)]
    assert wrong == []
    assert len({answer.text for _, answer in done}) > 30, "seeds made no difference"


def test_without_a_format_the_texts_are_none_of_these(ask: Any) -> None:
    """A model that wrote such documents by itself would prove nothing."""
    texts = [ask.Complete(request(None, seed), timeout=60).text for seed in range(4)]
    for text in texts:
        for wanted, accepts in FORMATS:
            if not wanted.HasField("json_schema"):
                assert not accepts(text)


def test_a_grammar_that_explodes_hurts_only_its_request(server: ServerProcess, ask: Any) -> None:
    """It is refused; who runs meanwhile and who comes next notices nothing."""
    with ThreadPoolExecutor(8) as pool:
        wanted, accepts = FORMATS[0]
        others = [pool.submit(ask.Complete, request(wanted, s), timeout=120) for s in range(4)]
        free = [pool.submit(ask.Complete, request(None, s), timeout=120) for s in range(3)]
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as refused:
                ask.Complete(request(pb.ResponseFormat(grammar=DEEP), 1), timeout=60)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "response_format.grammar: is too large" in refused.value.details()
        assert all(accepts(other.result().text) for other in others)
        assert all(one.result().finish.usage.completion_tokens for one in free)
    fresh = pb.ResponseFormat(regex="ab{3}")
    assert ask.Complete(request(fresh, 1), timeout=60).text == "abbb"
    assert server.process.poll() is None


# Masks, against an oracle that tries every token.

PIECES = [*"ab1- }cd", "aa", "ab", "ba", "abb", "12", "a-", "b1", '"', '{"', "2"]
LANGUAGES = [
    ("regex", "(ab|ba){1,3}"),
    ("regex", "a{2,4}-[0-9]{1,2}"),
    ("regex", "(a|ab)(c|bcd)?1*"),
    ("grammar", 'start: "a" rest\nrest: "b"{1,2} | "-" /[12]{1,3}/'),
]
# The same languages as Python's regular expressions, and all their texts up to a length.
SAME = {LANGUAGES[3][1]: "a(b{1,2}|-[12]{1,3})"}
LONGEST = 8


def small_vocabulary() -> tuple[Any, int]:
    vocab = {piece: index for index, piece in enumerate([*PIECES, "</s>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    end = vocab["</s>"]
    return read_vocabulary(tokenizer.to_str(), len(vocab), (end,)), end


def texts_of(pattern: str) -> set[str]:
    """All texts of a language that are not long, by trying them all."""
    alphabet = sorted(set("".join(PIECES)) - set(' "{}'))
    found: set[str] = set()
    begun = {""}
    compiled = re.compile(pattern)
    for _ in range(LONGEST):
        # Only what is a prefix of some text of the alphabet's language is gone on with: all are.
        begun = {text + letter for text in begun for letter in alphabet if plausible(text + letter)}
        found |= {text for text in begun if compiled.fullmatch(text)}
    return found


def plausible(text: str) -> bool:
    """Keeps the search small: none of the languages has such texts."""
    return not re.search("cc|dd|c1c|--|-a|-b|1a|1b|1c|1d|2a|2b|2c|2d|^[-12cd]|aaaaa|bbbb", text)


@pytest.mark.parametrize(("kind", "source"), LANGUAGES)
def test_masks_are_those_of_an_oracle_that_tries_every_token(kind: str, source: str) -> None:
    """After each text that tokens can make, those may follow that some text goes on with."""
    vocabulary, end = small_vocabulary()
    regex, lark = llguidance.LLMatcher.grammar_from_regex, llguidance.LLMatcher.grammar_from_lark
    make = regex if kind == "regex" else lark
    texts = texts_of(SAME.get(source, source))
    assert texts
    matcher = compile_grammar(vocabulary, make(source))
    begun: list[list[int]] = [[]]
    looked_at = 0
    while begun:
        tokens = begun.pop()
        written = "".join(PIECES[token] for token in tokens)
        copy = matcher.deep_copy()
        for token in tokens:
            copy.consume_token(token)
        expected = {
            index
            for index, piece in enumerate(PIECES)
            if any(text.startswith(written + piece) for text in texts)
        }
        if written in texts:
            expected.add(end)
        if copy.is_stopped():
            assert expected <= {end}, written
        else:
            given = mask(copy, len(PIECES) + 1)
            if end not in expected and len(next_letters(texts, written)) == 1:
                # What must come is written in the tokenizer's own way, and in no other.
                assert given, written
                assert given <= expected, written
            else:
                assert given == expected, written
        looked_at += 1
        if len(written) < LONGEST - 4:
            begun += [[*tokens, token] for token in expected - {end}]
    assert looked_at > 5


def next_letters(texts: set[str], written: str) -> set[str]:
    """Which letters may follow a beginning."""
    return {text[len(written) :][:1] for text in texts if text.startswith(written)}


def mask(matcher: Any, size: int) -> set[int]:
    words = np.zeros((size + 31) // 32, np.int32)
    matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:size]
    return set(np.flatnonzero(bits).tolist())
