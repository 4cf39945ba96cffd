"""Text to token ids and back, off the event loop when there is much of it.

Owns how much of that may wait. Knows nothing of variants or requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from artifacts.detokenizer import decode_all
from artifacts.tokenizer import Tokenizer
from server.calls import Conversation
from server.chat_template import ChatTemplate
from server.conversations import lay_out
from server.errors import OverloadedError

_Result = TypeVar("_Result")

# A hop to a thread and back costs as much as encoding about this many characters.
_INLINE_CHARACTERS = 2048
_INLINE_TOKENS = 512
_MOST_PENDING = 128
_RETRY_S = 0.2


class Texts:
    """Encodes and decodes in a small pool of threads. Lives on the event loop."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._pending = 0

    async def encode(
        self, tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True
    ) -> tuple[int, ...]:
        """Token ids of a text.

        Raises:
            OverloadedError: Too many long texts wait already.
        """

        def work() -> tuple[int, ...]:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)

        return work() if len(text) <= _INLINE_CHARACTERS else await self._in_thread(work)

    async def render(self, template: ChatTemplate | None, conversation: Conversation) -> str:
        """Text of a conversation; always in a thread, since a template may take its time.

        Raises:
            InvalidRequestError: The template refuses it.
            OverloadedError: Too many long texts wait already.
        """
        return await self._in_thread(lambda: lay_out(template, conversation))

    async def decode(
        self, tokenizer: Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> str:
        """Text of token ids.

        Raises:
            OverloadedError: Too many long texts wait already.
        """

        def work() -> str:
            return decode_all(tokenizer, token_ids, skip_special_tokens=skip_special_tokens)

        return work() if len(token_ids) <= _INLINE_TOKENS else await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        if self._pending >= _MOST_PENDING:
            raise OverloadedError(
                f"{self._pending} long texts wait to be encoded or decoded, as many as the "
                "server takes; try again later.",
                retry_after_s=_RETRY_S,
            )
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            self._pending -= 1
