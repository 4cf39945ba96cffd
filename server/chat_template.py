"""A model's chat template: a conversation into the text that the model was trained to continue.

Owns rendering with bounded fuel, in minijinja, which has no way out of its sandbox, with what
transformers gives its templates: ``raise_exception``, ``strftime_now``, ``tojson`` that leaves HTML
alone, and blocks without their own line ends. Knows nothing of tokens, of requests or of limits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import minijinja

from artifacts.errors import CorruptArtifactError

FUEL = 1_000_000
"""Instructions of the template language that one rendering may take; ten thousand messages pass."""

CONTEXT_NAMES = ("messages", "tools", "documents", "add_generation_prompt")
"""What every template is given, and so no caller may."""

_NAME = "chat_template"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
# What transformers marks the assistant's words with for training; nothing of it is shown.
_MARK = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


class TemplateRefusalError(Exception):
    """A template cannot render a conversation, or will not.

    Attributes:
        line: Of the template, from 1; None while it is not known.
    """

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(problem)
        self.line = line


@dataclass(frozen=True, slots=True)
class _Exception(Exception):  # noqa: N818 - the template's own word for it is raise_exception
    message: str


class ChatTemplate:
    """One template. May be used by several threads.

    Args:
        source: In Jinja.
        special_tokens: By their names in templates, such as ``bos_token``.
        fuel: See ``FUEL``.

    Raises:
        TemplateRefusalError: It is no template.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, *, fuel: int = FUEL
    ) -> None:
        self._environment = minijinja.Environment(
            debug=True,  # errors name their line
            fuel=fuel,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_escape_callback=lambda _: False,
            filters={"tojson": _to_json},
            tests={"iterable": lambda value: isinstance(value, Iterable)},  # Jinja's None is not
            globals={
                **(special_tokens or {}),
                "raise_exception": _raise,
                "strftime_now": lambda layout: datetime.now().strftime(layout),  # noqa: DTZ005
            },
        )
        try:
            self._environment.add_template(_NAME, _MARK.sub(_as_condition, source))
        except minijinja.TemplateError as error:
            raise _refusal(error) from error

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        continues: bool = False,
    ) -> str:
        """Lay out a conversation.

        Args:
            messages: At least one, each with ``role``.
            tools: None where the caller named none, as templates ask.
            arguments: Further values that the template reads.
            continues: End behind the last message's content instead of beginning an answer.

        Raises:
            TemplateRefusalError: The template raises, fails, or takes more fuel than it may.
        """
        # Copies: a template may append to a list, and the caller's is not its to change.
        context: dict[str, Any] = {
            **deepcopy(dict(arguments or {})),
            "messages": deepcopy(messages),
            "tools": deepcopy(tools),
            "documents": None,
            "add_generation_prompt": not continues,
        }
        try:
            text: str = self._environment.render_template(_NAME, **context)
        except _Exception as refusal:
            raise TemplateRefusalError(refusal.message, None) from refusal
        except minijinja.TemplateError as error:
            raise _refusal(error) from error
        return _cut_behind(text, messages[-1]) if continues else text


def load_template(template: Path | None, tokenizer_config: Path | None) -> ChatTemplate | None:
    """A model's template: the file of its own, or the one in its tokenizer's config.

    Args:
        template: ``chat_template.jinja``; None if there is none.
        tokenizer_config: ``tokenizer_config.json``; None if there is none.

    Returns:
        None where the model has none.

    Raises:
        CorruptArtifactError: A file cannot be read, or holds something else.
        TemplateRefusalError: It is no template.
    """
    config: Any = {}
    try:
        if tokenizer_config is not None:
            config = json.loads(tokenizer_config.read_text(encoding="utf-8"))
        source = template.read_text(encoding="utf-8") if template is not None else None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"The chat template cannot be read ({error}).") from error
    if not isinstance(config, dict):
        raise CorruptArtifactError("tokenizer_config.json holds no object.")
    source = source or _default_of(config.get("chat_template"))
    if source is None:
        return None
    tokens = {name: _content(config.get(name)) for name in _SPECIAL_TOKENS}
    return ChatTemplate(source, {name: text for name, text in tokens.items() if text is not None})


def _default_of(entry: Any) -> str | None:
    """The template in a tokenizer's config: one text, or a list of named ones."""
    if isinstance(entry, list):
        named = {one.get("name"): one.get("template") for one in entry if isinstance(one, dict)}
        entry = named.get("default")
    return entry if isinstance(entry, str) else None


def _content(token: Any) -> str | None:
    """A special token's text, which is written alone or with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _as_condition(mark: re.Match[str]) -> str:
    """A pair of marks as a condition that always holds."""
    return f"{{%{mark[1]} {'endif' if mark[2] else 'if true'} {mark[3]}%}}"


def _to_json(value: Any, **options: Any) -> str:
    """As transformers' own filter: without escapes for HTML or for other scripts."""
    known = ("ensure_ascii", "indent", "separators", "sort_keys")
    chosen = {name: options[name] for name in known if options.get(name) is not None}
    return json.dumps(value, **{"ensure_ascii": False, **chosen})


def _raise(message: Any) -> NoReturn:
    raise _Exception(str(message))


def _refusal(error: minijinja.TemplateError) -> TemplateRefusalError:
    problem = error.detail or error.message
    return TemplateRefusalError(" ".join(str(problem).split()), error.line)


def _cut_behind(text: str, message: Mapping[str, Any]) -> str:
    """The text up to the end of a message's content."""
    content = str(message.get("content") or "").strip()
    place = text.rfind(content)
    if not content or place < 0:
        raise TemplateRefusalError("it does not show the last message's content as it is", None)
    return text[: place + len(content)]
