"""Requests that are written in JSON: the names that other servers' clients use, into the core's.

Owns those names, their types and the sentences for what does not fit; shared by all faces that read
JSON. Knows nothing of bounds (``server.parameters``), of HTTP or of gRPC.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from server.calls import FormatKind, ResponseFormat
from server.config.errors import nearest
from server.errors import InvalidRequestError
from server.parameters import SamplingCall

_Request = TypeVar("_Request", bound="JsonRequest")

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]


def _all_when_negative(value: int) -> int:
    """VLLM's word for every token is -1."""
    return 0 if value == -1 else value


class JsonRequest(BaseModel):
    """A closed object; numbers may be written as strings, as some clients do."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JsonSchemaFormat(JsonRequest):
    """OpenAI's wrapper around a schema."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class OpenAIFormat(JsonRequest):
    """OpenAI's ``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def format(self) -> ResponseFormat | None:
        """In the core's terms.

        Raises:
            InvalidRequestError: The schema is missing.
        """
        match self.type:
            case "text":
                return None
            case "json_object":
                return ResponseFormat(FormatKind.JSON_OBJECT)
            case "json_schema":
                if self.json_schema is None:
                    raise InvalidRequestError(
                        "response_format.json_schema", "is not set", "send the schema in it"
                    )
                return ResponseFormat(FormatKind.JSON_SCHEMA, json.dumps(self.json_schema.schema_))


class StructuredOutputs(JsonRequest):
    """vLLM's ``structured_outputs``: exactly one of these."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def format(self) -> ResponseFormat | None:
        """In the core's terms.

        Raises:
            InvalidRequestError: There are several.
        """
        found: list[ResponseFormat] = []
        if self.json_ is not None:
            schema = self.json_ if isinstance(self.json_, str) else json.dumps(self.json_)
            found.append(ResponseFormat(FormatKind.JSON_SCHEMA, schema))
        if self.regex is not None:
            found.append(ResponseFormat(FormatKind.REGEX, self.regex))
        if self.choice is not None:
            found.append(ResponseFormat(FormatKind.CHOICE, choices=tuple(self.choice)))
        if self.grammar is not None:
            found.append(ResponseFormat(FormatKind.GRAMMAR, self.grammar))
        if self.json_object:
            found.append(ResponseFormat(FormatKind.JSON_OBJECT))
        if len(found) > 1:
            raise InvalidRequestError("structured_outputs", "has several forms", "send one")
        return found[0] if found else None


class JsonSampling(JsonRequest):
    """Sampling under the names of OpenAI's API and of vLLM's additions to it."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31), AfterValidator(_all_when_negative)] | None = (
        None
    )
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Seed | None = None
    max_tokens: Count | None = None
    min_tokens: Count | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Count] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[Count, float] | None = None
    allowed_token_ids: list[Count] | None = None
    bad_words: list[str] | None = None
    n: Count | None = None
    max_time_seconds: float | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: Count | None = None
    priority: Annotated[int, Field(gt=-(1 << 31), lt=1 << 31)] = 0
    response_format: OpenAIFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    def sampling(self, *, logprobs: int | None, max_tokens: int | None = None) -> SamplingCall:
        """In the core's terms; ``max_tokens`` where the request has another word for it."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return SamplingCall(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias or {},
            seed=self.seed,
            max_tokens=self.max_tokens if max_tokens is None else max_tokens,
            min_tokens=self.min_tokens,
            stop=tuple(stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            allowed_token_ids=tuple(self.allowed_token_ids or ()),
            bad_words=tuple(self.bad_words or ()),
            n=self.n,
            max_time_seconds=self.max_time_seconds,
            skip_special_tokens=self.skip_special_tokens,
            include_stop=self.include_stop_str_in_output,
        )

    def format(self) -> ResponseFormat | None:
        """What the text must keep to, however it was said.

        Raises:
            InvalidRequestError: It was said twice, or not wholly.
        """
        one = None if self.response_format is None else self.response_format.format()
        other = None if self.structured_outputs is None else self.structured_outputs.format()
        if one and other:
            raise InvalidRequestError(
                "structured_outputs", "is set beside response_format", "leave one of them out"
            )
        return one or other


def parse(text: str) -> Any:
    """What JSON holds, if all its texts can be written in UTF-8.

    Raises:
        ValueError: It is none, or a text holds half of a surrogate pair.
        RecursionError: It is nested too deeply.
    """
    content = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(content, ensure_ascii=False).encode()
    return content


def read(kind: type[_Request], content: Any, *, where: str = "") -> _Request:
    """Read an object.

    Args:
        kind: What it is to be.
        content: What JSON holds.
        where: The field that it stands in, empty at the top.

    Raises:
        InvalidRequestError: The first field that does not fit.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as failure:
        raise _first(kind, failure, where) from failure


def _first(kind: type[BaseModel], failure: ValidationError, where: str) -> InvalidRequestError:
    error = failure.errors(include_url=False)[0]
    names = [str(part) for part in error["loc"]]
    field = ".".join([where, *names] if where else names) or "body"
    if error["type"] == "extra_forbidden":
        known = [entry.alias or name for name, entry in kind.model_fields.items()]
        near = nearest(names[-1], known) if len(names) == 1 else None
        remedy = f"did you mean {near}?" if near else "leave it out"
        return InvalidRequestError(field, "is not known here", remedy)
    if error["type"] == "missing":
        return InvalidRequestError(field, "is not set", "set it")
    said = error["msg"][:1].lower() + error["msg"][1:]
    return InvalidRequestError(field, said, "correct it")
