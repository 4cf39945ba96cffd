"""The core of answering: a call in, its outputs out, whatever the face.

Owns the way of a request: routing, checks, admission, text to tokens, the engine, tokens to text,
and its one entry in telemetry. Lives on the event loop. Knows nothing of gRPC, HTTP or protobuf,
and of the engine only its messages.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import structlog

from server.account import Account
from server.answer import Answer
from server.calls import GenerateCall, Output
from server.catalog import Catalog, VariantView
from server.engine.messages import (
    Cancel,
    Command,
    Event,
    Failed,
    FailureCode,
    FinishReason,
    Timings,
    Token,
    Usage,
)
from server.errors import (
    DeadlineExceededError,
    InternalError,
    NothingFollowsError,
    OverloadedError,
    RequestError,
    Status,
    UnavailableError,
)
from server.generation import EngineFailure, Generation
from server.grammars import Grammars
from server.intake import Accepted, Intake
from server.limits import RequestLimits
from server.mailbox import Mailroom
from server.observer import RequestObserver
from server.parameters import check_text, check_token_ids
from server.preparation import Preparation
from server.selection import Selection, require_tokenizer
from server.shadowing import RECORDED, Shadowing
from server.texts import Texts

# A client gives up at its own deadline, a moment before ours: so near to it, that was the reason.
_DEADLINE_SLACK_S = 0.05
# Seeds survive a reader that keeps numbers as doubles.
_SEED_BITS = 53


class Core:
    """Answers calls from the catalog's variants. Build it on the running event loop.

    ``deliver`` is for the engine's thread; everything else belongs to the loop. ``post`` hands a
    command to the engine and must neither block nor raise. ``clock`` is the engine's clock.
    ``max_queue_s`` is how long a request may wait for a slot, ``clients`` how many are told apart
    by their tokens.
    """

    def __init__(
        self,
        catalog: Catalog,
        post: Callable[[Command], None],
        *,
        executor: Executor,
        grammar_executor: Executor,
        observer: RequestObserver | None = None,
        limits: RequestLimits | None = None,
        max_queue_s: float = 30.0,
        clients: int = 0,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        draw_seed: Callable[[], int] = lambda: secrets.randbits(_SEED_BITS),
        new_log_id: Callable[[], str] = lambda: secrets.token_hex(8),
        log: Any = None,
    ) -> None:
        self._catalog = catalog
        self._post = post
        self._observer = observer or RequestObserver()
        self.limits = limits or RequestLimits()
        self.clock = clock
        self._new_log_id = new_log_id
        self._log = log or structlog.get_logger("server.core")
        self._selection = Selection(catalog, draw)
        self._texts = Texts(executor)
        preparation = Preparation(self._texts, Grammars(grammar_executor), self.limits)
        self._intake = Intake(
            self._selection,
            preparation,
            self.limits,
            clock,
            draw_seed,
            max_queue_s=max_queue_s,
            clients=clients,
        )
        self._mailroom = Mailroom()
        self._shadowing = Shadowing(
            catalog,
            self._mailroom,
            post,
            clock=clock,
            draw=draw,
            done=self._observer.shadowed,
            dropped=self._observer.shadow_dropped,
        )
        self._unfinished = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_cut = False

    # Requests.

    async def generate(self, call: GenerateCall) -> AsyncGenerator[Output]:
        """Answer one call, one output per engine step and choice; each one's last has ``finish``.

        Close the iterator (``contextlib.aclosing``) or cancel its task, and the engine frees the
        request's slot within one step.

        Raises:
            RequestError: The request is refused or fails; see ``server.errors``.
        """
        account = Account(self._observer, self.clock, call)
        self._unfinished += 1
        self._idle.clear()
        try:
            accepted = await self._intake.accept(call, account)
            account.artifact = accepted.serving.artifact
            candidate = self._shadowing.candidate_for(accepted.serving)
            answer = self._submit(accepted, account, recorded=candidate is not None)
            unfinished = len(accepted.submits)
            tokens: list[Token] = []
            try:
                while unfinished:
                    output = await answer.next()
                    account.handed_over(len(output.tokens), output.choice)
                    if candidate is not None and output.choice == 0:
                        tokens.extend(output.tokens)
                    if output.finish is not None:
                        account.finishes.append(output.finish.reason)
                        unfinished -= 1
                        if not unfinished:
                            account.status = Status.OK
                            first = accepted.submits[0]
                            self._shadowing.look_at(accepted.serving, candidate, first, tokens)
                    yield output
            finally:
                account.usage, account.timings = answer.usage, answer.timings
                answer.leave()
                accepted.leave()
        except EngineFailure as failure:
            error = self._error_of(failure.event, account.variant)
            account.status = error.status
            raise error from None
        except RequestError as error:
            account.status = error.status
            raise
        except (asyncio.CancelledError, GeneratorExit):
            if account.status is not Status.OK:
                account.status = self._why_left(call)
            raise
        finally:
            account.close()
            self._unfinished -= 1
            if not self._unfinished:
                self._idle.set()

    async def tokenize(
        self, variant: str, text: str, *, add_special_tokens: bool = True
    ) -> list[tuple[int, str]]:
        """Token ids of a text, each with the vocabulary's own spelling."""
        tokenizer = require_tokenizer(self._selection.named(variant))
        check_text("text", text, self.limits.max_prompt_bytes, "send it in parts")
        ids = await self._texts.encode(tokenizer, text, add_special_tokens=add_special_tokens)
        return [(token_id, tokenizer.token(token_id) or "") for token_id in ids]

    async def detokenize(
        self, variant: str, token_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> str:
        """Text of token ids."""
        view = self._selection.named(variant)
        tokenizer = require_tokenizer(view)
        vocab_size = tokenizer.size if view.manifest is None else view.manifest.graph.vocab_size
        check_token_ids("token_ids", token_ids, vocab_size, self.limits.max_prompt_tokens)
        return await self._texts.decode(
            tokenizer, token_ids, skip_special_tokens=skip_special_tokens
        )

    def spell(self, variant: str, token_id: int) -> bytes:
        """What one token of a variant is as bytes, by itself."""
        return require_tokenizer(self._selection.named(variant)).spelling(token_id)

    def variant(self, name: str) -> VariantView:
        """One variant; the default for an empty name.

        Raises:
            UnknownVariantError: There is none of this name.
        """
        return self._selection.named(name)

    def routed_variant(self) -> VariantView:
        """The variant that most of what is routed goes to now; ready if any of them is."""
        return self._selection.likeliest()

    def variants(self) -> list[VariantView]:
        """All variants, in the order of the config."""
        return [self._selection.named(name) for name in self._catalog.names()]

    @property
    def default(self) -> str:
        """Name of the default variant."""
        return self._catalog.default

    def internal(self, error: BaseException, **context: object) -> InternalError:
        """Log an error of ours; return what the caller may know of it."""
        log_id = self._new_log_id()
        self._log.error("internal_error", log_id=log_id, exc_info=error, **context)
        return InternalError(log_id)

    # The engine and the end.

    def deliver(self, events: Sequence[Event]) -> None:
        """Take all events of one engine step, on the engine's thread; does not block."""
        self._mailroom.deliver(events)

    @property
    def unfinished(self) -> int:
        """Requests whose outputs have not all been taken."""
        return self._unfinished

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._intake.draining = True

    async def wait_idle(self) -> None:
        """Wait until every request's last output was taken, or its caller has left."""
        await self._idle.wait()

    def end_all(self, reason: str) -> int:
        """End every request UNAVAILABLE, here and in the engine, for the server stops.

        Returns:
            How many there were in the engine. An answer that is whole but not taken can still be;
            from now on it is the server that left, and not the caller.
        """
        self._is_cut = True

        def final(request_id: str) -> Failed:
            nothing = Usage(0, 0, 0), Timings(0.0, 0.0, 0.0)
            return Failed(request_id, FailureCode.UNAVAILABLE, reason, *nothing)

        ids = self._mailroom.end_all(final)
        for request_id in ids:
            self._post(Cancel(request_id, FinishReason.CANCELLED))
        return len(ids)

    def _submit(self, accepted: Accepted, account: Account, *, recorded: bool) -> Answer:
        """Hand an accepted call to the engine."""
        submits = accepted.submits
        if recorded:
            count = min(RECORDED, accepted.serving.manifest.graph.vocab_size)
            submits = (replace(submits[0], recorded=count), *submits[1:])
        ids = [submit.request_id for submit in submits]
        mailbox = self._mailroom.open(ids, accepted.ended)
        choices = [
            Generation(
                submit,
                accepted.serving,
                accepted.options,
                self._post,
                choice=index,
                truncated_tokens=accepted.truncated_tokens,
            )
            for index, submit in enumerate(submits)
        ]
        answer = Answer(tuple(zip(ids, choices, strict=True)), mailbox, self._post)
        for submit in submits:
            self._post(submit)
        account.submitted(len(submits[0].prompt))
        return answer

    # How a request ended.

    def _error_of(self, event: Failed, variant: str) -> RequestError:
        match event.code:
            case FailureCode.DEADLINE_EXCEEDED:
                return DeadlineExceededError(
                    f"the deadline passed after {event.usage.completion_tokens} tokens; allow "
                    "more time or ask for fewer tokens."
                )
            case FailureCode.RESOURCE_EXHAUSTED:
                return OverloadedError(
                    f"variant {variant!r} had no slot for this in time; try again later.",
                    retry_after_s=self._intake.retry_after_s(variant),
                )
            case FailureCode.UNAVAILABLE:
                return UnavailableError(event.message)
            case FailureCode.INVALID_ARGUMENT:
                return NothingFollowsError(event.message)
            case FailureCode.INTERNAL:
                log_id = self._new_log_id()
                self._log.error(
                    "request_failed",
                    log_id=log_id,
                    engine_request=event.request_id,
                    error=event.message,
                )
                return InternalError(log_id)

    def _why_left(self, call: GenerateCall) -> Status:
        if call.deadline_s is not None and self.clock() >= call.deadline_s - _DEADLINE_SLACK_S:
            return Status.DEADLINE_EXCEEDED
        return Status.UNAVAILABLE if self._is_cut else Status.CANCELLED
