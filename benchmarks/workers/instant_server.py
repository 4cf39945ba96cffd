"""A server of the API that computes nothing and answers at once, token by token.

Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc

from benchmarks.workers.protocol import answer_requests
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc

_VARIANT = "instant"


class InstantService(pb_grpc.InferenceServicer):
    """Gives as many tokens as asked for."""

    async def Tokenize(  # noqa: N802 - as the stubs name it
        self, request: pb.TokenizeRequest, _: Any
    ) -> pb.TokenizeResponse:
        """A token per character."""
        return pb.TokenizeResponse(token_ids=[ord(character) for character in request.text])

    async def Generate(  # noqa: N802 - as the stubs name it
        self, request: pb.GenerateRequest, _: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        """A token per message."""
        for token in range(request.sampling.max_tokens):
            yield pb.GenerateResponse(token_ids=[token])
        yield pb.GenerateResponse(finish=pb.Finish(variant=_VARIANT))


def start() -> dict[str, Any]:
    """Listen on a free port."""
    port: list[int] = []
    listens = threading.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        pb_grpc.add_InferenceServicer_to_server(  # type: ignore[no-untyped-call]
            InstantService(), server
        )
        port.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        listens.set()
        await server.wait_for_termination()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    listens.wait()
    return {"port": port[0]}


if __name__ == "__main__":
    answer_requests({"start": start})
