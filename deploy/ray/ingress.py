"""The ingress: the gRPC API behind Ray Serve's proxy; passes each call to a replica of its variant.

Owns which variant a call goes to, and that it goes twice where its replica is lost before the first
message: nothing of it has been seen, so it can be had again. Later, the stream ends UNAVAILABLE, as
it does when a server dies. Which replica, and how many there are, is Ray Serve's. Knows nothing of
what is in a message but the variant's name.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import Message
from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from deploy.ray.passing import Call, Refusal, passed
from protos import inference_pb2 as pb
from server.routing import choose

_CANCELLED = (RequestCancelledError, TaskCancelledError)
_TRIES = 2

M = TypeVar("M", bound=Message)


class RefusedError(Exception):
    """A call did not end well; status and words are in its context."""


class Ingress:
    """Made by Ray Serve.

    Args:
        replicas: The deployment of each variant.
        weights: Of the variants for requests that name none; the first counts where none has one.
    """

    def __init__(
        self, replicas: Mapping[str, DeploymentHandle], weights: Mapping[str, float]
    ) -> None:
        self._replicas = {
            name: handle.options(stream=True, method_name="call")
            for name, handle in replicas.items()
        }
        self._weights = dict(weights) or {next(iter(replicas)): 1.0}
        self._random = random.SystemRandom()

    # The methods of the service, by their names in the proto.

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        """See the proto."""
        async for message in self._pass("Generate", request, grpc_context):
            yield pb.GenerateResponse.FromString(message)

    async def Chat(  # noqa: N802
        self, request: pb.ChatRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        """See the proto."""
        async for message in self._pass("Chat", request, grpc_context):
            yield pb.GenerateResponse.FromString(message)

    async def Complete(  # noqa: N802
        self, request: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> pb.CompleteResponse:
        """See the proto."""
        return await self._one("Complete", request, grpc_context, pb.CompleteResponse)

    async def CompleteChat(  # noqa: N802
        self, request: pb.ChatRequest, grpc_context: RayServegRPCContext
    ) -> pb.CompleteResponse:
        """See the proto."""
        return await self._one("CompleteChat", request, grpc_context, pb.CompleteResponse)

    async def GetVariant(  # noqa: N802
        self, request: pb.GetVariantRequest, grpc_context: RayServegRPCContext
    ) -> pb.Variant:
        """See the proto; of one replica, since all of a variant serve the same."""
        found = await self._one("GetVariant", request, grpc_context, pb.Variant)
        return self._as_seen_from_here(found)

    async def ListVariants(  # noqa: N802
        self, request: pb.ListVariantsRequest, grpc_context: RayServegRPCContext
    ) -> pb.ListVariantsResponse:
        """See the proto; each as one of its replicas tells."""
        del request
        asked = [pb.GetVariantRequest(variant=name) for name in self._replicas]
        found = [await self.GetVariant(one, grpc_context) for one in asked]
        return pb.ListVariantsResponse(variants=found)

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, grpc_context: RayServegRPCContext
    ) -> pb.TokenizeResponse:
        """See the proto."""
        return await self._one("Tokenize", request, grpc_context, pb.TokenizeResponse)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, grpc_context: RayServegRPCContext
    ) -> pb.DetokenizeResponse:
        """See the proto."""
        return await self._one("Detokenize", request, grpc_context, pb.DetokenizeResponse)

    # How calls pass.

    async def _one(
        self, method: str, request: Any, context: RayServegRPCContext, answer: type[M]
    ) -> M:
        found = [message async for message in self._pass(method, request, context, streams=False)]
        (message,) = found
        read: M = answer.FromString(message)
        return read

    async def _pass(
        self,
        method: str,
        request: Any,
        context: RayServegRPCContext,
        *,
        streams: bool = True,
    ) -> AsyncIterator[bytes]:
        """The messages of a call, of the first replica that gives one."""
        replicas = self._replicas_for(request, context)
        metadata = passed(context.invocation_metadata())
        call = Call(method, streams, request.SerializeToString(), metadata)
        for attempt in range(_TRIES):
            begun = False
            lost = ""
            try:
                async for item in replicas.remote(call):
                    if isinstance(item, Refusal):
                        if item.code != grpc.StatusCode.UNAVAILABLE.name or begun:
                            _refuse(context, item)
                        lost = item.details
                        break
                    begun = True
                    yield item
            except _CANCELLED:
                raise
            except BackPressureError as error:
                _refuse(context, Refusal("RESOURCE_EXHAUSTED", f"{error}"))
            except (RayError, RayServeException) as error:
                lost = f"its replica was lost ({type(error).__name__})"
            if not lost:
                return
            if begun or attempt == _TRIES - 1:
                _refuse(context, Refusal("UNAVAILABLE", f"{lost}; send the request again."))

    def _replicas_for(self, request: Any, context: RayServegRPCContext) -> Any:
        if not request.variant:
            key = getattr(request, "routing_key", "")
            request.variant = choose(self._weights, key, self._random.random) or ""
        found = self._replicas.get(request.variant)
        if found is None:
            known = ", ".join(self._replicas)
            _refuse(context, Refusal("NOT_FOUND", f"variant: is unknown; use one of: {known}."))
        return found

    def _as_seen_from_here(self, variant: pb.Variant) -> pb.Variant:
        """A replica knows only itself."""
        variant.is_default = variant.name == next(iter(self._replicas))
        variant.traffic_weight = self._weights.get(variant.name, 0.0)
        return variant


def _refuse(context: RayServegRPCContext, refusal: Refusal) -> NoReturn:
    context.set_code(grpc.StatusCode[refusal.code])
    context.set_details(refusal.details)
    context.set_trailing_metadata(list(refusal.trailers))
    raise RefusedError(refusal.details)
