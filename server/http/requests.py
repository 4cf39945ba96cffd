"""Requests of OpenAI's API into calls of the core. Converts and nothing else: the core judges.

Fields that say nothing to a server of one's own (``user``, ``store``, ...) are taken and ignored;
what would change the answer and is not served is refused, as are names that nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from server.calls import Conversation, GenerateCall
from server.errors import InvalidRequestError
from server.json_request import Count, JsonRequest, JsonSampling, read
from server.routing import ROUTED

TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
_MOST_PARTS = 1024


class StreamOptions(JsonRequest):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Common(JsonSampling):
    """What completions and chat completions share."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    routing_key: str = ""
    # Taken and ignored.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def call(
        self, prompt: Any, received_s: float, client: str, *, logprobs: int | None, **more: Any
    ) -> GenerateCall:
        """In the core's terms."""
        return GenerateCall(
            prompt=prompt,
            received_s=received_s,
            variant="" if self.model == ROUTED else self.model,
            sampling=self.sampling(logprobs=logprobs, max_tokens=more.pop("max_tokens", None)),
            routing_key=self.routing_key,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            priority=self.priority,
            response_format=self.format(),
            client=client,
            **more,
        )


class CompletionRequest(_Common):
    """``POST /v1/completions``."""

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    echo: bool = False
    logprobs: Count | None = None
    best_of: Count | None = None
    suffix: str | None = None

    def calls(self, received_s: float, most: int, client: str = "") -> list[GenerateCall]:
        """One for each prompt.

        Raises:
            InvalidRequestError: There are none or too many, or something is not served.
        """
        if self.suffix:
            raise InvalidRequestError("suffix", "is not served", "leave it out")
        if self.best_of not in (None, self.n or 1):
            raise InvalidRequestError("best_of", "is not served", "leave it out, and use n")
        prompts = self._prompts()
        if not 1 <= len(prompts) <= most:
            problem = f"has {len(prompts)} prompts, and may have 1 to {most}"
            raise InvalidRequestError("prompt", problem, "send them in several requests")
        scored = self.logprobs if self.echo else None
        return [
            self.call(
                prompt,
                received_s,
                client,
                logprobs=self.logprobs,
                echo=self.echo,
                prompt_logprobs=scored,
            )
            for prompt in prompts
        ]

    def _prompts(self) -> Sequence[Any]:
        prompt = self.prompt
        is_one = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int))
        return [prompt] if is_one else prompt


class TextPart(JsonRequest):
    """One part of a message's content; texts are all that is served."""

    type: Literal["text"]
    text: str


class Message(JsonRequest):
    """One message of a conversation."""

    role: str
    content: str | Annotated[list[TextPart], Field(max_length=_MOST_PARTS)] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None

    def as_template_reads(self) -> dict[str, Any]:
        """What is not set is not there; parts are one text."""
        found = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            found["content"] = "\n".join(part.text for part in self.content)
        return found


class ChatRequest(_Common):
    """``POST /v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool = False

    def conversation_call(self, received_s: float, client: str = "") -> GenerateCall:
        """In the core's terms.

        Raises:
            InvalidRequestError: Fields contradict each other.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("top_logprobs", "needs logprobs", "set logprobs to true")
        conversation = Conversation(
            messages=[message.as_template_reads() for message in self.messages],
            tools=(self.tools or ()) if self.tool_choice != "none" else (),
            arguments=self.chat_template_kwargs or {},
            continues=self.continue_final_message,
        )
        return self.call(
            conversation,
            received_s,
            client,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            max_tokens=self.max_completion_tokens,
        )


def completion_request(content: Any) -> CompletionRequest:
    """Read the body of a completion.

    Raises:
        InvalidRequestError: The first field that does not fit.
    """
    return read(CompletionRequest, content)


def chat_request(content: Any) -> ChatRequest:
    """Read the body of a chat completion.

    Raises:
        InvalidRequestError: The first field that does not fit.
    """
    return read(ChatRequest, content)
