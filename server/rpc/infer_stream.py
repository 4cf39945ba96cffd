"""One stream of the Open Inference Protocol: many requests at a time, each answered as it goes.

Owns the order of writing and the cap on requests. The last response to each request says so in
``triton_final_response``. Errors of one request are told in the stream and end nothing else, unless
the caller asked with the header ``triton_grpc_error`` for a status. Knows nothing of gRPC's server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from protos import open_inference_pb2 as oip
from server.core import Core
from server.errors import OverloadedError, RequestError
from server.request_context import begin_part
from server.rpc.caller import client_of
from server.rpc.infer_answers import InferAnswer, empty_response
from server.rpc.infer_calls import infer_call
from server.rpc.status import send

MOST_AT_A_TIME = 64
"""Requests of one stream that may be unfinished."""

_FINAL = "triton_final_response"
_AS_STATUS = ("triton_grpc_error", "true")
_RETRY_S = 0.2


class InferStream:
    """One caller's stream."""

    def __init__(self, core: Core, context: Any) -> None:
        self._core = core
        self._context = context
        self._as_status = _AS_STATUS in tuple(context.invocation_metadata() or ())
        self._lock = asyncio.Lock()  # gRPC takes one message of a stream after another

    async def answer(self, requests: AsyncIterator[oip.ModelInferRequest]) -> None:
        """Answer all requests, and return when the caller sends none any more.

        Raises:
            RequestError: The first error of a request, where the caller wants it as a status.
        """
        running: set[asyncio.Task[None]] = set()
        number = 0
        try:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    number += 1
                    if len(running) >= MOST_AT_A_TIME:
                        # Not in a task: whoever does not read is not read from either.
                        await self._fail(request, _too_many())
                        continue
                    task = group.create_task(self._answer(request, number))
                    running.add(task)
                    task.add_done_callback(running.discard)
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
        else:
            return
        raise first

    async def _answer(self, request: oip.ModelInferRequest, number: int) -> None:
        """Answer one request of the stream, in a task of its own."""
        begin_part(number)
        core = self._core
        try:
            asked = infer_call(
                request,
                received_s=core.clock(),
                remaining_s=self._context.time_remaining(),
                client=client_of(self._context),
            )
            answer = InferAnswer(request, asked)
            async with aclosing(core.generate(asked.call)) as outputs:
                if asked.streams:
                    async for output in outputs:
                        response = answer.response([output])
                        await self._write(response, final=answer.is_whole and not asked.empty_final)
                else:
                    response = answer.response([output async for output in outputs])
                    await self._write(response, final=not asked.empty_final)
            if asked.empty_final:
                await self._write(empty_response(request), final=True)
        except RequestError as error:
            await self._fail(request, error)
        except Exception as error:  # noqa: BLE001 - the border: nothing may leave with its detail
            await self._fail(request, core.internal(error, method="ModelStreamInfer"))

    async def _fail(self, request: oip.ModelInferRequest, error: RequestError) -> None:
        if self._as_status:
            raise error
        response = empty_response(request)
        response.parameters["status"].string_param = error.status.value
        await self._write(response, final=True, error=str(error))

    async def _write(
        self, response: oip.ModelInferResponse, *, final: bool, error: str = ""
    ) -> None:
        """Send a response; ``final`` is the last one to its request."""
        response.parameters[_FINAL].bool_param = final
        message = oip.ModelStreamInferResponse(error_message=error, infer_response=response)
        async with self._lock:
            sending = asyncio.ensure_future(send(self._context, message))
            try:
                await asyncio.shield(sending)
            except asyncio.CancelledError:
                # A call whose write was given up half way can never be told its status.
                await asyncio.wait({sending})
                raise


def _too_many() -> OverloadedError:
    return OverloadedError(
        f"the stream has {MOST_AT_A_TIME} unfinished requests, as many as it takes; wait for one "
        "of them to end.",
        retry_after_s=_RETRY_S,
    )
