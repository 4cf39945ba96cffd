"""The methods of ``inference_unlimited.v1.Inference``, each a few lines around the core."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from server.calls import GenerateCall
from server.core import Core
from server.rpc.caller import client_of
from server.rpc.requests import chat_call, generate_call
from server.rpc.responses import complete_response, generate_response
from server.rpc.status import answering, send
from server.rpc.variants import variant_message


class InferenceService(pb_grpc.InferenceServicer):
    """Names and order of the methods are the .proto's."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Stream a completion."""
        await self._stream("Generate", generate_call, request, context)

    async def Complete(  # noqa: N802
        self, request: pb.GenerateRequest, context: Any
    ) -> pb.CompleteResponse:
        """Complete at once."""
        return await self._whole("Complete", generate_call, request, context)

    async def Chat(self, request: pb.ChatRequest, context: Any) -> None:  # noqa: N802
        """Stream the answer to a conversation."""
        await self._stream("Chat", chat_call, request, context)

    async def CompleteChat(  # noqa: N802
        self, request: pb.ChatRequest, context: Any
    ) -> pb.CompleteResponse:
        """Answer a conversation at once."""
        return await self._whole("CompleteChat", chat_call, request, context)

    async def _stream(
        self, method: str, read: Callable[..., GenerateCall], request: Any, context: Any
    ) -> None:
        core = self._core
        async with answering(core, context, method):
            call = read(
                request,
                received_s=core.clock(),
                remaining_s=context.time_remaining(),
                client=client_of(context),
            )
            logprobs = call.sampling.logprobs is not None
            async with aclosing(core.generate(call)) as outputs:
                async for output in outputs:
                    await send(context, generate_response(output, logprobs=logprobs))

    async def _whole(
        self, method: str, read: Callable[..., GenerateCall], request: Any, context: Any
    ) -> pb.CompleteResponse:
        core = self._core
        async with answering(core, context, method):
            call = read(
                request,
                received_s=core.clock(),
                remaining_s=context.time_remaining(),
                client=client_of(context),
            )
            async with aclosing(core.generate(call)) as outputs:
                return complete_response(
                    [output async for output in outputs],
                    logprobs=call.sampling.logprobs is not None,
                )

    async def ListVariants(  # noqa: N802
        self, request: pb.ListVariantsRequest, context: Any
    ) -> pb.ListVariantsResponse:
        """All variants, in the order of the config."""
        del request
        core = self._core
        async with answering(core, context, "ListVariants"):
            return pb.ListVariantsResponse(
                variants=[
                    variant_message(view, is_default=view.name == core.default)
                    for view in core.variants()
                ]
            )

    async def GetVariant(  # noqa: N802
        self, request: pb.GetVariantRequest, context: Any
    ) -> pb.Variant:
        """One variant."""
        core = self._core
        async with answering(core, context, "GetVariant"):
            view = core.variant(request.variant)
            return variant_message(view, is_default=view.name == core.default)

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Any
    ) -> pb.TokenizeResponse:
        """Text to token ids."""
        special = not request.HasField("add_special_tokens") or request.add_special_tokens
        async with answering(self._core, context, "Tokenize"):
            tokens = await self._core.tokenize(
                request.variant, request.text, add_special_tokens=special
            )
            return pb.TokenizeResponse(
                token_ids=[token_id for token_id, _ in tokens],
                tokens=[token for _, token in tokens],
            )

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Any
    ) -> pb.DetokenizeResponse:
        """Token ids to text."""
        skip = not request.HasField("skip_special_tokens") or request.skip_special_tokens
        async with answering(self._core, context, "Detokenize"):
            return pb.DetokenizeResponse(
                text=await self._core.detokenize(
                    request.variant, request.token_ids, skip_special_tokens=skip
                )
            )
