"""What a run of the load generator needs of a server: connections, and a text in its tokens.

Knows nothing of what is sent and of what comes of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from server.bench.attempt import Attempt
from server.bench.prompts import Prompts
from server.bench.run import Load, Run
from server.client import Metadata, RefusedError, open_channels

TEXT = Path(__file__).with_name("text.txt")
"""What prompts are cut from unless another text is named."""
CONNECTIONS = 4
_MOST_TEXT = 1 << 18  # characters; more is sent for nothing, and servers take only so much
_TOKENIZE_S = 60.0


@asynccontextmanager
async def open_run(
    target: str,
    text: str,
    load: Load,
    *,
    connections: int = CONNECTIONS,
    ca: Path | None = None,
    metadata: Metadata = (),
    ended: Callable[[Attempt], None] = lambda _: None,
) -> AsyncIterator[Run]:
    """Connect, and prepare a run.

    Args:
        target: Where the server listens.
        text: What prompts are cut from, with its first 262,144 characters.
        load: What is sent, and when.
        connections: Over how many requests are spread.
        ca: PEM file with who signed its certificate; None for plaintext.
        metadata: Sent with every call.
        ended: Told of each request that ended.

    Raises:
        UnreachableError: Nothing answers there.
        RefusedError: The server does not give the text's tokens, so it would answer no request.
    """
    async with open_channels(target, connections, ca) as channels:
        stubs: list[Any] = [
            pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
            for channel in channels
        ]
        prompts = {
            name: Prompts(await _tokens(stubs[0], name, text, metadata), load.plan.seed)
            for name in dict.fromkeys(load.variants)
        }
        yield Run(stubs, prompts, load, metadata=metadata, ended=ended)


async def _tokens(stub: Any, variant: str, text: str, metadata: Metadata) -> list[int]:
    request = pb.TokenizeRequest(variant=variant, text=text[:_MOST_TEXT], add_special_tokens=False)
    try:
        answer = await stub.Tokenize(request, timeout=_TOKENIZE_S, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        code = error.code().name.lower()
        raise RefusedError(code, error.details() or "no details") from None
    return list(answer.token_ids)
