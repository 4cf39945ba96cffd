"""One run of the load generator against a server.

Owns what is sent: prompts of drawn lengths from a text, how long answers are, who leaves early.
Knows nothing of terminals or files.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from protos import inference_pb2 as pb
from server.bench.arrivals import Plan, send_all
from server.bench.attempt import Attempt, attempt
from server.bench.lengths import Lengths
from server.bench.summary import Objective, summarize

_FRESH_TOKENS = 2  # at a prompt's beginning, so that none is answered from another's cache


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent.

    Attributes:
        plan: When.
        variants: Names to ask in turn; empty for routed traffic.
        prompt_tokens: Lengths of prompts.
        output_tokens: Lengths of answers, each exactly so long.
        cancel_rate: Share of requests that leave in the middle of the answer.
        shared_prefix: Tokens that all prompts begin with.
        timeout_s: Deadline of each request.
        temperature: Of sampling.
        seed: Of all draws.
    """

    plan: Plan
    variants: tuple[str, ...]
    prompt_tokens: Lengths
    output_tokens: Lengths
    cancel_rate: float = 0.0
    shared_prefix: int = 0
    timeout_s: float = 600.0
    temperature: float = 0.0
    seed: int = 0


async def run(
    stub: Any,
    text: Sequence[int],
    load: Load,
    objective: Objective,
    *,
    metadata: Sequence[tuple[str, str]] = (),
    ended: Callable[[Attempt], None] = lambda _: None,
) -> dict[str, Any]:
    """Send all requests; give the figures.

    Args:
        stub: Of the server.
        text: Token ids that prompts are cut from.
        load: What is sent, and when.
        objective: What counts as good.
        metadata: Sent with every request.
        ended: Is told of each request that ended.
    """
    attempts: list[Attempt] = []

    async def send(number: int, due_s: float) -> None:
        rng = random.Random(f"{load.seed} {number}")  # noqa: S311 - no secret
        prompt = _prompt(text, load, rng)
        tokens = load.output_tokens.draw(rng)
        leaves = rng.random() < load.cancel_rate
        one = await attempt(
            stub,
            _request(load, number, prompt, tokens),
            prompt,
            due_s=due_s,
            timeout_s=load.timeout_s,
            leaves_after=rng.randint(1, max(tokens - 1, 1)) if leaves else None,
            metadata=metadata,
        )
        attempts.append(one)
        ended(one)

    seconds = await send_all(load.plan, send)
    return summarize(attempts, seconds, objective)


def _prompt(text: Sequence[int], load: Load, rng: random.Random) -> list[int]:
    length = load.prompt_tokens.draw(rng)
    shared = min(load.shared_prefix, max(length - 1, 0))
    start = rng.randrange(len(text))
    window = [text[(start + offset) % len(text)] for offset in range(length - shared)]
    fresh = rng.choices(text, k=min(_FRESH_TOKENS, len(window)))
    begin = [text[offset % len(text)] for offset in range(shared)]
    return begin + fresh + window[len(fresh) :]


def _request(load: Load, number: int, prompt: Sequence[int], tokens: int) -> pb.GenerateRequest:
    variant = load.variants[number % len(load.variants)] if load.variants else ""
    return pb.GenerateRequest(
        variant=variant,
        token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParameters(
            max_tokens=tokens, ignore_eos=True, temperature=load.temperature, seed=number
        ),
    )
