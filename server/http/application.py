"""OpenAI's methods over HTTP, each a few lines around the core.

A stream begins once the first output is there, so that whatever is refused has a status of its own;
later errors are told in the stream. Who disconnects frees the engine within a step. Knows nothing
of how requests are answered.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from server.calls import GenerateCall, Output
from server.catalog import VariantState
from server.core import Core
from server.errors import InvalidRequestError, RequestError, Status, UnknownVariantError
from server.http.errors import CODES, error_body, refusal
from server.http.guard import client_of
from server.http.openapi import document
from server.http.requests import chat_request, completion_request
from server.http.responses import CHAT, COMPLETION, Choice, Kind, Usages
from server.json_text import read_json
from server.routing import ROUTED

_Method = Callable[[Any, float], Coroutine[Any, Any, Response]]

_EVENTS = "text/event-stream"
_DONE = "data: [DONE]\n\n"


class OpenAI:
    """The routes of OpenAI's API.

    Args:
        core: Answers.
        started: When the server began, as seconds since the epoch.
    """

    def __init__(self, core: Core, *, started: float) -> None:
        self._core = core
        self._started = int(started)

    def application(self) -> Starlette:
        """The application behind the listener."""
        return Starlette(
            routes=[
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/openapi.json", self._document, methods=["GET"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{model}", self._model, methods=["GET"]),
            ],
            exception_handlers={404: _no_such_route, 405: _no_such_route},
        )

    async def _completions(self, request: Request) -> Response:
        async def answer(content: Any, received_s: float) -> Response:
            asked = completion_request(content)
            most = self._core.limits.max_choices
            calls = asked.calls(received_s, most, client_of(request.scope))
            logprobs = asked.logprobs is not None
            answer = _Answer(self._core, COMPLETION, calls, model=asked.model, logprobs=logprobs)
            if asked.stream:
                return await answer.stream(includes_usage=asked.includes_usage)
            return await answer.whole()

        return await self._answering(request, answer, "completions")

    async def _chat(self, request: Request) -> Response:
        async def answer(content: Any, received_s: float) -> Response:
            asked = chat_request(content)
            calls = [asked.conversation_call(received_s, client_of(request.scope))]
            answer = _Answer(self._core, CHAT, calls, model=asked.model, logprobs=asked.logprobs)
            if asked.stream:
                return await answer.stream(includes_usage=asked.includes_usage)
            return await answer.whole()

        return await self._answering(request, answer, "chat/completions")

    async def _document(self, request: Request) -> Response:
        del request
        return JSONResponse(document())

    async def _models(self, request: Request) -> Response:
        del request
        names = [ROUTED, *(view.name for view in self._core.variants())]
        data = [self._model_object(name) for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["model"]
        try:
            if name != ROUTED:
                self._core.variant(name)
        except UnknownVariantError as error:
            return refusal(error)
        return JSONResponse(self._model_object(name))

    def _model_object(self, name: str) -> dict[str, Any]:
        view = self._core.routed_variant() if name == ROUTED else self._core.variant(name)
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "inference-unlimited",
            "ready": view.state is VariantState.READY,
        }

    async def _content(self, request: Request) -> Any:
        """The body's JSON, no larger than a request may be.

        Raises:
            InvalidRequestError: It is larger, or no JSON.
        """
        most = self._core.limits.largest_message_bytes
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise InvalidRequestError("body", f"has more than {most} bytes", "send less")
        return read_json("body", bytes(body))

    async def _answering(self, request: Request, answer: _Method, method: str) -> Response:
        """Run a method's body while its caller is there; errors become answers of the table."""
        received_s = self._core.clock()
        try:
            content = await self._content(request)
            return await _while_connected(request, answer(content, received_s))
        except ClientDisconnect:
            return Response(status_code=CODES[Status.CANCELLED])  # nobody reads it
        except RequestError as error:
            return refusal(error)
        except Exception as error:  # noqa: BLE001 - the border: nothing may leave with its detail
            return refusal(self._core.internal(error, method=method))


class _Answer:
    """One answer, from one or several calls."""

    def __init__(
        self, core: Core, kind: Kind, calls: Sequence[GenerateCall], *, model: str, logprobs: bool
    ) -> None:
        self._core = core
        self._kind = kind
        self._calls = calls
        self._usages = Usages()
        self._per_prompt = calls[0].sampling.n or 1
        self._logprobs = logprobs
        # Made as they come: what was asked is not judged yet, and nothing may be as large as it.
        self._choices: dict[int, Choice] = {}
        self._head = {
            "id": f"{kind.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model or ROUTED,
        }
        self._artifact: str | None = None

    async def whole(self) -> Response:
        """All at once."""
        async with aclosing(self._outputs()) as outputs:
            async for prompt, output in outputs:
                self._choice(prompt, output).add(output)
        return JSONResponse(
            {
                **self._head,
                "object": self._kind.name,
                "system_fingerprint": self._artifact,
                "choices": [self._choices[index].whole() for index in sorted(self._choices)],
                "usage": self._usages.message(),
            }
        )

    async def stream(self, *, includes_usage: bool) -> Response:
        """Each step as it comes."""
        outputs = self._outputs()
        try:
            first = await anext(outputs)
        except BaseException:
            await outputs.aclose()
            raise
        events = self._events(first, outputs, includes_usage=includes_usage)
        return StreamingResponse(events, media_type=_EVENTS, headers={"Cache-Control": "no-cache"})

    async def _events(
        self,
        first: tuple[int, Output],
        outputs: AsyncGenerator[tuple[int, Output]],
        *,
        includes_usage: bool,
    ) -> AsyncIterator[str]:
        async with aclosing(outputs):
            try:
                yield self._event(*first)
                async for prompt, output in outputs:
                    yield self._event(prompt, output)
            except RequestError as error:
                yield _data(error_body(error))
                return
            except Exception as error:  # noqa: BLE001 - the border, as above
                yield _data(error_body(self._core.internal(error, method=self._kind.name)))
                return
        if includes_usage:
            chunk = {**self._chunk_head(), "choices": [], "usage": self._usages.message()}
            yield _data(chunk)
        yield _DONE

    def _event(self, prompt: int, output: Output) -> str:
        choice = self._choice(prompt, output).chunk(output)
        return _data({**self._chunk_head(), "choices": [choice]})

    def _choice(self, prompt: int, output: Output) -> Choice:
        index = prompt * self._per_prompt + output.choice
        if index not in self._choices:
            spell = self._core.spell
            self._choices[index] = Choice(self._kind, index, spell, logprobs=self._logprobs)
        return self._choices[index]

    def _chunk_head(self) -> dict[str, Any]:
        return {
            **self._head,
            "object": self._kind.chunk_name,
            "system_fingerprint": self._artifact,
        }

    async def _outputs(self) -> AsyncGenerator[tuple[int, Output]]:
        """Outputs of all calls, each with its call's number."""
        merged = _merged([self._core.generate(call) for call in self._calls])
        async with aclosing(merged):
            async for prompt, output in merged:
                if output.finish is not None:
                    self._usages.add(prompt, output.finish)
                    self._artifact = output.finish.artifact
                yield prompt, output


async def _merged(
    sources: Sequence[AsyncGenerator[Output]],
) -> AsyncGenerator[tuple[int, Output]]:
    """What several generators give, as it comes; the first error ends all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for output in source:
                yield 0, output
        return
    # One place: who does not read holds up the generators, which keep their own outputs.
    ready: asyncio.Queue[tuple[int, Output | BaseException | None]] = asyncio.Queue(maxsize=1)

    async def pour(index: int, source: AsyncGenerator[Output]) -> None:
        last: BaseException | None = None
        try:
            async with aclosing(source):
                async for output in source:
                    await ready.put((index, output))
        except Exception as error:  # noqa: BLE001 - raised again where it is read
            last = error
        await ready.put((index, last))

    tasks = [asyncio.create_task(pour(index, source)) for index, source in enumerate(sources)]
    try:
        unfinished = len(tasks)
        while unfinished:
            index, given = await ready.get()
            if isinstance(given, BaseException):
                raise given
            if given is None:
                unfinished -= 1
            else:
                yield index, given
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Run until done.

    Raises:
        ClientDisconnect: The caller left first.
    """
    task = asyncio.create_task(work)
    left = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        left.cancel()
        task.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    """Return when the caller has left; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _no_such_route(request: Request, error: Exception) -> Response:
    code = getattr(error, "status_code", 404)
    what = "no such path" if code == 404 else "no such method of this path"
    content = {"message": f"{request.method} {request.url.path[:128]}: {what}"}
    return JSONResponse({"error": {**content, "type": "not_found_error"}}, status_code=code)


def _data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
