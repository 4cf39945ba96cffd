"""The methods of ``inference.GRPCInferenceService``: our variants as models.

A stream carries any number of requests at a time; each is answered in its own order, and the last
response of each says so in ``triton_final_response``. Errors of one request in a stream are told in
it and end nothing else, unless the caller asked with ``triton_grpc_error`` for a status. Knows
nothing of how requests are answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from importlib.metadata import version
from typing import Any

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from server.calls import Output
from server.catalog import VariantState, VariantView
from server.core import Core
from server.engine.messages import FinishReason
from server.errors import (
    InvalidRequestError,
    OverloadedError,
    PreconditionError,
    RequestError,
)
from server.operations import Operations
from server.request_context import begin_part
from server.routing import ROUTED
from server.rpc.caller import client_of
from server.rpc.chains import read_chain
from server.rpc.infer_calls import VERSION, InferCall, check_version, infer_call, variant_of
from server.rpc.status import answering, send
from server.rpc.tensors import add_output

_FINAL = "triton_final_response"
_AS_STATUS = ("triton_grpc_error", "true")
_MOST_AT_A_TIME = 64  # requests of one stream
_RETRY_S = 0.2
_INPUTS = (
    ("text_input", "BYTES"),
    ("stream", "BOOL"),
    ("sampling_parameters", "BYTES"),
    ("exclude_input_in_output", "BOOL"),
    ("return_finish_reason", "BOOL"),
    ("return_cumulative_logprob", "BOOL"),
    ("return_num_input_tokens", "BOOL"),
    ("return_num_output_tokens", "BOOL"),
)
_OUTPUTS = (
    ("text_output", "BYTES"),
    ("finish_reason", "BYTES"),
    ("cumulative_logprob", "FP32"),
    ("num_input_tokens", "UINT32"),
    ("num_output_tokens", "UINT32"),
)
_STATES = {
    VariantState.READY: "READY",
    VariantState.FAILED: "UNAVAILABLE",
    VariantState.PENDING: "UNAVAILABLE",
    VariantState.BUILDING: "LOADING",
    VariantState.LOADING: "LOADING",
    VariantState.UNLOADED: "UNAVAILABLE",
}


class OpenInferenceService(oip_grpc.GRPCInferenceServiceServicer):
    """Names and order of the methods are the protocol's."""

    def __init__(
        self, core: Core, ready: Callable[[], bool], operations: Operations | None
    ) -> None:
        self._core = core
        self._ready = ready
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
        """Whether any variant that routed traffic goes to takes requests."""
        del request, context
        return oip.ServerReadyResponse(ready=self._ready())

    async def ModelReady(  # noqa: N802
        self, request: oip.ModelReadyRequest, context: Any
    ) -> oip.ModelReadyResponse:
        """Whether a variant takes requests."""
        async with answering(self._core, context, "ModelReady"):
            check_version(request.version)
            if not (variant := variant_of(request.name)):  # routed traffic
                return oip.ModelReadyResponse(ready=self._ready())
            view = self._core.variant(variant)
            return oip.ModelReadyResponse(ready=view.state is VariantState.READY)

    async def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: Any
    ) -> oip.ServerMetadataResponse:
        """Who answers."""
        del request, context
        return oip.ServerMetadataResponse(
            name="inference-unlimited",
            version=version("inference-unlimited"),
            extensions=["model_repository", "model_stream"],
        )

    async def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: Any
    ) -> oip.ModelMetadataResponse:
        """What a variant takes and gives."""
        async with answering(self._core, context, "ModelMetadata"):
            check_version(request.version)
            self._core.variant(variant_of(request.name))
            kind = oip.ModelMetadataResponse.TensorMetadata
            return oip.ModelMetadataResponse(
                name=request.name,
                versions=[VERSION],
                platform="onnxruntime",
                inputs=[kind(name=name, datatype=kind_, shape=[1]) for name, kind_ in _INPUTS],
                outputs=[kind(name=name, datatype=kind_, shape=[-1]) for name, kind_ in _OUTPUTS],
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
                return _whole(request, asked, [output async for output in outputs])

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Any
    ) -> None:
        """Answer the requests of a stream, each as it goes."""
        as_status = _AS_STATUS in tuple(context.invocation_metadata() or ())
        writer = _Writer(context)
        async with answering(self._core, context, "ModelStreamInfer"):
            running: set[asyncio.Task[None]] = set()
            number = 0
            try:
                async with asyncio.TaskGroup() as group:
                    async for request in requests:
                        number += 1
                        busy = len(running) >= _MOST_AT_A_TIME
                        answer = self._answer(
                            request, writer, number=number, busy=busy, as_status=as_status
                        )
                        task = group.create_task(answer)
                        running.add(task)
                        task.add_done_callback(running.discard)
            except* RequestError as errors:
                raise errors.exceptions[0] from None

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Any
    ) -> oip.RepositoryIndexResponse:
        """All variants, and the name for routed traffic."""
        async with answering(self._core, context, "RepositoryIndex"):
            response = oip.RepositoryIndexResponse()
            if (routed := self._ready()) or not request.ready:
                state = "READY" if routed else "UNAVAILABLE"
                response.models.add(name=ROUTED, version=VERSION, state=state)
            for view in self._core.variants():
                if view.state is VariantState.READY or not request.ready:
                    response.models.add(
                        name=view.name,
                        version=VERSION,
                        state=_STATES[view.state],
                        reason=_reason(view),
                    )
            return response

    async def RepositoryModelLoad(  # noqa: N802
        self, request: oip.RepositoryModelLoadRequest, context: Any
    ) -> oip.RepositoryModelLoadResponse:
        """Load a variant that was unloaded, or one by the chain in the parameter ``chain``."""
        async with answering(self._core, context, "RepositoryModelLoad"):
            operations = self._require_operations()
            parameters = request.parameters
            text = parameters["chain"].string_param if "chain" in parameters else ""
            if unknown := sorted(set(parameters) - {"chain"}):
                raise InvalidRequestError(
                    f"parameters.{unknown[0][:64]}", "is not known", "send chain, or nothing"
                )
            last: VariantView | None = None
            async with aclosing(
                operations.load(request.model_name, read_chain(text), None)
            ) as all_:
                async for view in all_:
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

    def _require_operations(self) -> Operations:
        if self._operations is None:
            raise PreconditionError("this server's variants cannot be changed while it runs.")
        return self._operations

    async def _answer(
        self,
        request: oip.ModelInferRequest,
        writer: _Writer,
        *,
        number: int,
        busy: bool,
        as_status: bool,
    ) -> None:
        """Answer one request of a stream, in a task of its own."""
        begin_part(number)
        core = self._core
        try:
            _refuse_when(busy=busy)
            asked = infer_call(
                request,
                received_s=core.clock(),
                remaining_s=writer.time_remaining(),
                client=writer.client,
            )
            async with aclosing(core.generate(asked.call)) as outputs:
                if asked.streams:
                    await _write_steps(request, asked, outputs, writer)
                else:
                    response = _whole(request, asked, [output async for output in outputs])
                    await writer.write(response, final=not asked.empty_final)
            if asked.empty_final:
                await writer.write(_response(request), final=True)
        except RequestError as error:
            if as_status:
                raise
            await writer.write(_response(request), final=True, error=str(error))
        except Exception as error:  # noqa: BLE001 - the border: nothing may leave with its detail
            failure = core.internal(error, method="ModelStreamInfer")
            if as_status:
                raise failure from None
            await writer.write(_response(request), final=True, error=str(failure))


def _refuse_when(*, busy: bool) -> None:
    if busy:
        raise OverloadedError(
            f"the stream has {_MOST_AT_A_TIME} unfinished requests, as many as it takes; wait for "
            "one of them to end.",
            retry_after_s=_RETRY_S,
        )


class _Writer:
    """The one way into a stream, for all who answer in it at the same time."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.client = client_of(context)
        self._lock = asyncio.Lock()  # gRPC takes one message of a stream after another

    def time_remaining(self) -> float | None:
        """Seconds until the stream's deadline, if it has one."""
        remaining: float | None = self._context.time_remaining()
        return remaining

    async def write(
        self, response: oip.ModelInferResponse, *, final: bool, error: str = ""
    ) -> None:
        """Send a response; ``final`` is the last one to its request."""
        response.parameters[_FINAL].bool_param = final
        message = oip.ModelStreamInferResponse(error_message=error, infer_response=response)
        async with self._lock:
            await send(self._context, message)


async def _write_steps(
    request: oip.ModelInferRequest,
    asked: InferCall,
    outputs: AsyncIterator[Output],
    writer: _Writer,
) -> None:
    count = asked.call.sampling.n or 1
    unfinished = count
    async for output in outputs:
        unfinished -= output.finish is not None
        response = _response(request)
        _fill(response, asked, [[output] if output.choice == i else [] for i in range(count)])
        await writer.write(response, final=not unfinished and not asked.empty_final)


def _response(request: oip.ModelInferRequest) -> oip.ModelInferResponse:
    return oip.ModelInferResponse(
        model_name=request.model_name, model_version=VERSION, id=request.id
    )


def _whole(
    request: oip.ModelInferRequest, asked: InferCall, outputs: Sequence[Output]
) -> oip.ModelInferResponse:
    count = asked.call.sampling.n or 1
    response = _response(request)
    choices = [[output for output in outputs if output.choice == i] for i in range(count)]
    _fill(response, asked, choices)
    finish = outputs[-1].finish
    if finish is not None:
        response.parameters["variant"].string_param = finish.variant
        response.parameters["artifact"].string_param = finish.artifact
    return response


def _fill(
    response: oip.ModelInferResponse, asked: InferCall, choices: Sequence[Sequence[Output]]
) -> None:
    """Add the wanted outputs, with one element per choice."""
    values: dict[str, list[Any]] = {
        "text_output": ["".join(output.text for output in each).encode() for each in choices],
        "finish_reason": [_finish_reason(each).encode() for each in choices],
        "cumulative_logprob": [
            sum(token.logprob or 0.0 for output in each for token in output.tokens)
            for each in choices
        ],
        "num_output_tokens": [sum(len(output.tokens) for output in each) for each in choices],
    }
    finishes = [output.finish for each in choices for output in each if output.finish is not None]
    if finishes:
        values["num_input_tokens"] = [finishes[0].usage.prompt_tokens]
    for name, datatype in _OUTPUTS:
        if name in asked.outputs and name in values:
            add_output(response, name, datatype, values[name], raw=asked.raw)


def _finish_reason(outputs: Sequence[Output]) -> str:
    """OpenAI's words, which Triton's backends use too; empty while it goes on."""
    finish = outputs[-1].finish if outputs else None
    if finish is None:
        return ""
    return "stop" if finish.reason is FinishReason.STOP else "length"


def _reason(view: VariantView) -> str:
    return view.error or ("" if view.state is VariantState.READY else view.state.value)
