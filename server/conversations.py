"""What a conversation may be before it is laid out, and the sentences when a template refuses it.

Owns the checks of messages, tools and arguments. Knows nothing of tokens or of how a template
renders.
"""

from __future__ import annotations

import json
from typing import Any

from server.calls import Conversation
from server.chat_template import CONTEXT_NAMES, ChatTemplate, TemplateRefusalError
from server.errors import InvalidRequestError, PreconditionError
from server.limits import RequestLimits
from server.parameters import check_text

_LONGEST_ROLE_BYTES = 64


def check_conversation(
    conversation: Conversation, limits: RequestLimits, template: ChatTemplate | None
) -> None:
    """Refuse a conversation before it is laid out.

    Raises:
        InvalidRequestError: Its first field that is wrong.
        PreconditionError: The model has no template.
    """
    if template is None:
        raise PreconditionError(
            "messages: this model has no chat template to lay them out with; send the whole prompt "
            "as a text instead."
        )
    count = len(conversation.messages)
    if not count:
        raise InvalidRequestError("messages", "is empty", "send at least one")
    if count > limits.max_messages:
        problem = f"has {count} messages, and the limit is {limits.max_messages}"
        raise InvalidRequestError("messages", problem, "send fewer")
    for index, message in enumerate(conversation.messages):
        name = f"messages[{index}].role"
        if not message.get("role"):
            raise InvalidRequestError(name, "is not set", "set it, such as to user")
        check_text(name, message["role"], _LONGEST_ROLE_BYTES, "shorten it")
    for argument in conversation.arguments:
        if argument in CONTEXT_NAMES:
            problem = f"names {argument!r}, which the server sets itself"
            raise InvalidRequestError("template_arguments", problem, "leave it out")
    if conversation.continues and not conversation.messages[-1].get("content"):
        raise InvalidRequestError(
            "continue_final_message", "the last message has no content to go on with", "give it one"
        )
    whole = json.dumps(
        [*conversation.messages, *conversation.tools, conversation.arguments], ensure_ascii=False
    )
    check_text("messages", whole, limits.max_prompt_bytes, "shorten the conversation")


def lay_out(template: ChatTemplate | None, conversation: Conversation) -> str:
    """The text of a conversation that was checked.

    Raises:
        InvalidRequestError: The template refuses it; the sentence names its line.
    """
    assert template is not None  # noqa: S101 - check_conversation has passed
    messages: list[dict[str, Any]] = [dict(message) for message in conversation.messages]
    try:
        return template.render(
            messages,
            tools=list(conversation.tools) or None,
            arguments=conversation.arguments,
            continues=conversation.continues,
        )
    except TemplateRefusalError as refusal:
        where = "" if refusal.line is None else f" in its line {refusal.line}"
        raise InvalidRequestError(
            "messages",
            f"the model's chat template refuses them{where}: {refusal}",
            "change the conversation to what the template takes",
        ) from refusal
