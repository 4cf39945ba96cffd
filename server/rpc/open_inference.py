"""The methods of ``inference.GRPCInferenceService``: our variants as models.

One more name, ``routed``, is the traffic that is routed by weight. Knows nothing of how requests
are answered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from importlib.metadata import version
from typing import Any

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from server.catalog import VariantState, VariantView
from server.core import Core
from server.errors import InvalidRequestError, PreconditionError
from server.operations import Operations
from server.routing import ROUTED
from server.rpc.caller import client_of
from server.rpc.chains import read_chain
from server.rpc.infer_answers import OUTPUTS, InferAnswer
from server.rpc.infer_calls import INPUTS, VERSION, check_version, infer_call, variant_of
from server.rpc.infer_stream import InferStream
from server.rpc.status import answering

_CHAIN = "chain_json"
_STATES = {
    VariantState.READY: "READY",
    VariantState.FAILED: "UNAVAILABLE",
    VariantState.PENDING: "UNAVAILABLE",
    VariantState.BUILDING: "LOADING",
    VariantState.LOADING: "LOADING",
    VariantState.UNLOADED: "UNAVAILABLE",
}


class OpenInferenceService(oip_grpc.GRPCInferenceServiceServicer):
    """Names and order of the methods are the protocol's.

    Args:
        core: Answers.
        is_serving: Whether a variant takes requests; the empty name is routed traffic.
        operations: What may be changed while it runs; None for nothing.
    """

    def __init__(
        self, core: Core, is_serving: Callable[[str], bool], operations: Operations | None
    ) -> None:
        self._core = core
        self._is_serving = is_serving
        self._operations = operations

    async def ServerLive(  # noqa: N802
        self, request: oip.ServerLiveRequest, context: Any
    ) -> oip.ServerLiveResponse:
        """Whether it answers at all."""
        del request, context
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: oip.ServerReadyRequest, context: Any
    ) -> oip.ServerReadyResponse:
        """Whether routed traffic is answered; not while the server drains."""
        del request, context
        return oip.ServerReadyResponse(ready=self._is_serving(""))

    async def ModelReady(  # noqa: N802
        self, request: oip.ModelReadyRequest, context: Any
    ) -> oip.ModelReadyResponse:
        """Whether a variant takes requests; none does while the server drains."""
        async with answering(self._core, context, "ModelReady"):
            check_version(request.version)
            view = self._view(request.name)
            return oip.ModelReadyResponse(ready=self._is_serving(view.name))

    async def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: Any
    ) -> oip.ServerMetadataResponse:
        """Who answers."""
        del request, context
        return oip.ServerMetadataResponse(
            name="inference-unlimited",
            version=version("inference-unlimited"),
            extensions=["model_repository", "parameters"],
        )

    async def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: Any
    ) -> oip.ModelMetadataResponse:
        """What a variant takes and gives."""
        async with answering(self._core, context, "ModelMetadata"):
            check_version(request.version)
            self._view(request.name)
            kind = oip.ModelMetadataResponse.TensorMetadata
            return oip.ModelMetadataResponse(
                name=request.name,
                versions=[VERSION],
                platform="onnxruntime_onnx",
                inputs=[
                    kind(name=name, datatype=kind_, shape=[1]) for name, kind_ in INPUTS.items()
                ],
                outputs=[
                    kind(name=name, datatype=kind_, shape=[-1]) for name, kind_ in OUTPUTS.items()
                ],
            )

    async def ModelInfer(  # noqa: N802
        self, request: oip.ModelInferRequest, context: Any
    ) -> oip.ModelInferResponse:
        """Complete at once."""
        core = self._core
        async with answering(core, context, "ModelInfer"):
            asked = infer_call(
                request,
                received_s=core.clock(),
                remaining_s=context.time_remaining(),
                client=client_of(context),
            )
            async with aclosing(core.generate(asked.call)) as outputs:
                return InferAnswer(request, asked).response([each async for each in outputs])

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Any
    ) -> None:
        """Answer the requests of a stream, each as it goes."""
        async with answering(self._core, context, "ModelStreamInfer"):
            await InferStream(self._core, context).answer(requests)

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Any
    ) -> oip.RepositoryIndexResponse:
        """All variants, and the name for routed traffic."""
        async with answering(self._core, context, "RepositoryIndex"):
            response = oip.RepositoryIndexResponse()
            named = [(view.name, view) for view in self._core.variants()]
            for name, view in ((ROUTED, self._core.routed_variant()), *named):
                if view.state is VariantState.READY or not request.ready:
                    response.models.add(
                        name=name, version=VERSION, state=_STATES[view.state], reason=_reason(view)
                    )
            return response

    async def RepositoryModelLoad(  # noqa: N802
        self, request: oip.RepositoryModelLoadRequest, context: Any
    ) -> oip.RepositoryModelLoadResponse:
        """Load a variant that does not serve, or a new one by a chain in ``chain_json``."""
        async with answering(self._core, context, "RepositoryModelLoad"):
            operations = self._require_operations()
            name = request.model_name
            chain = read_chain(_chain_text(request))
            if chain is None and operations.is_ready(name):
                return oip.RepositoryModelLoadResponse()  # clients load what they are about to ask
            last: VariantView | None = None
            async with aclosing(operations.load(name, chain, None)) as views:
                async for view in views:
                    last = view
            if last is not None and last.state is VariantState.FAILED:
                raise PreconditionError(last.error or "the variant cannot be loaded.")
            return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: oip.RepositoryModelUnloadRequest, context: Any
    ) -> oip.RepositoryModelUnloadResponse:
        """Unload a variant once its requests have ended."""
        async with answering(self._core, context, "RepositoryModelUnload"):
            await self._require_operations().unload(request.model_name)
            return oip.RepositoryModelUnloadResponse()

    def _view(self, model: str) -> VariantView:
        name = variant_of(model)
        return self._core.variant(name) if name else self._core.routed_variant()

    def _require_operations(self) -> Operations:
        if self._operations is None:
            raise PreconditionError("this server's variants cannot be changed while it runs.")
        return self._operations


def _reason(view: VariantView) -> str:
    return view.error or ("" if view.state is VariantState.READY else view.state.value)


def _chain_text(request: oip.RepositoryModelLoadRequest) -> str:
    """The parameter; empty where there is none."""
    if unknown := sorted(set(request.parameters) - {_CHAIN}):
        raise InvalidRequestError(
            f"parameters.{unknown[0][:64]}", "is not known", f"send {_CHAIN}, or nothing"
        )
    if _CHAIN not in request.parameters:
        return ""
    parameter = request.parameters[_CHAIN]
    if parameter.WhichOneof("parameter_choice") != "string_param":
        raise InvalidRequestError(f"parameters.{_CHAIN}", "is no string", "send it as a string")
    return parameter.string_param
