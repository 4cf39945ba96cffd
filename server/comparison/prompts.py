"""The prompts of a comparison: windows of the evaluation text, as token ids.

Owns where the text comes from (the config's, the demo's own, else what the model writes itself)
and that every variant gets the same prompts in the same round. Knows nothing of what is measured.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from artifacts import texts
from protos import inference_pb2 as pb
from server.comparison.streams import Client
from server.config.fields import Config

_DOCUMENTS = 64
_DOCUMENT_CHARACTERS = 20_000
_FRESH_TOKENS = 2  # at a prompt's beginning, so that none is answered from another's cache
_WRITTEN = 16  # documents, when the model writes the text
_WRITTEN_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Prompts:
    """Draws prompts; the same arguments always give the same ones.

    Attributes:
        documents: Token ids of each document.
        seed: Of all draws.
    """

    documents: tuple[tuple[int, ...], ...]
    seed: int = 0

    def draw(self, purpose: str, count: int, length: int) -> list[list[int]]:
        """Windows (count, length) from anywhere in the text, with a beginning of their own.

        The text is repeated where it is too short.
        """
        rng = random.Random(f"{self.seed} {purpose}")  # noqa: S311 - no secret
        text = [token for document in self.documents for token in document]
        prompts = []
        for _ in range(count):
            start = rng.randrange(len(text))
            window = [text[(start + offset) % len(text)] for offset in range(length)]
            fresh = rng.choices(text, k=min(_FRESH_TOKENS, length))
            prompts.append(fresh + window[len(fresh) :])
        return prompts

    def beginnings(self, count: int, length: int) -> list[list[int]]:
        """Beginnings of documents, evenly spread over the text; fewer where there are fewer."""
        fit = [document for document in self.documents if len(document) >= length]
        step = max(len(fit) / count, 1) if count else 1
        return [list(fit[int(index * step)][:length]) for index in range(min(count, len(fit)))]


async def read_prompts(config: Config, client: Client, *, seed: int = 0) -> Prompts:
    """Prompts from the text that quality is measured on, tokenized by the server.

    Raises:
        TextError: The evaluation text cannot be read.
        StreamError: The server refuses.
    """
    documents = [await client.tokenize(text) for text in _texts(config)]
    documents = [document for document in documents if document]
    return Prompts(tuple(documents or await _written(client)), seed)


def _texts(config: Config) -> Sequence[str]:
    if config.evaluation is not None:
        path = config.evaluation.text
    elif config.model == "demo":
        path = str(Path(str(files("demo"))) / "heldout.jsonl")
    else:
        return ()
    return [text[:_DOCUMENT_CHARACTERS] for text in texts.read(path)[:_DOCUMENTS]]


async def _written(client: Client) -> list[tuple[int, ...]]:
    """What the model writes by itself."""
    start = await client.tokenize("The")
    length = (await client.describe()).limits.max_length
    tokens = max(min(_WRITTEN_TOKENS, length - len(start)), 1)
    streams = await asyncio.gather(
        *(client.generate(start, _freely(tokens, seed)) for seed in range(_WRITTEN))
    )
    return [start + stream.tokens for stream in streams]


def _freely(tokens: int, seed: int) -> pb.SamplingParameters:
    return pb.SamplingParameters(temperature=1.0, max_tokens=tokens, ignore_eos=True, seed=seed)
