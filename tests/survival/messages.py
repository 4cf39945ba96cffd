"""Random protobuf messages, drawn from nothing but their descriptors.

Each field is left out, or holds a value of its type: numbers at their bounds, texts that are
empty, large, or full of what text handling stumbles over, as many entries of a list as nobody
expects. Knows nothing of what fields mean; ``tame`` is where a test says what would end it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_F = FieldDescriptor
_DEEPEST = 4

WORDS = (
    *("", " ", "\x00", "x", "baseline", "int8", "default", "auto", "1", "user", "assistant"),
    *("def main():", "é", "日本語", "🙂" * 3, "\u202e", "<|endoftext|>", "\ufffd", "a" * 70_000),
    *("{", "[]", "{}", "null", "NaN", '{"a": NaN}', "[" * 2000, '{"max_tokens": 2}', '"\\ud800"'),
    *('[{"type": "function", "function": {"name": "f"}}]', '{"temperature": 1e999}', "-1", "1e400"),
    *("a|b", "(a{1,1000}){1,1000}", "(", "[a-z]+", 'start: "a"+', "start: start", "start:"),
    *('{"type": "object"}', '{"type": "array", "items": {"$ref": "#"}}', '{"$ref": "#"}'),
)
NAMES = (
    *("text_input", "stream", "sampling_parameters", "exclude_input_in_output", "text_output"),
    *("return_finish_reason", "return_cumulative_logprob", "timeout", "sequence_id", "chain"),
    *("BYTES", "BOOL", "FP32", "UINT64", "max_tokens", "n", "temperature", "logit_bias", "stop"),
)

_INTS: Mapping[int, tuple[int, int]] = {
    **dict.fromkeys((_F.CPPTYPE_INT32, _F.CPPTYPE_ENUM), (-(1 << 31), (1 << 31) - 1)),
    _F.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    _F.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    _F.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_FLOATS = (0.0, -0.0, 1.0, 0.5, -1.0, 1e-45, 1e30, float("nan"), float("inf"), -float("inf"))


def messages(
    descriptor: Descriptor, depth: int = 0, *, most_fields: int | None = None
) -> st.SearchStrategy[Message]:
    """Messages of one type; ``most_fields`` of each are set."""
    kind = message_factory.GetMessageClass(descriptor)
    fields = {
        field.name: _values(field, depth, most_fields)
        for field in descriptor.fields
        if field.message_type is None or depth < _DEEPEST
    }
    # Of fields that exclude each other the last one stays, as on the wire.
    if most_fields is not None and fields:
        names = st.lists(st.sampled_from(sorted(fields)), max_size=most_fields, unique=True)
        some = names.flatmap(
            lambda few: st.fixed_dictionaries({name: fields[name] for name in few})
        )
        return some.map(lambda chosen: _made(kind, chosen))
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: _made(kind, chosen))


def _made(kind: type[Message], chosen: dict[str, Any]) -> Message:
    message: Any = kind()
    for name, value in chosen.items():
        field = kind.DESCRIPTOR.fields_by_name[name]
        target = getattr(message, name)
        if _is_map(field):
            value_field = field.message_type.fields_by_name["value"]
            for key, one in value.items():
                if value_field.message_type is None:
                    target[key] = one
                else:
                    target[key].CopyFrom(one)
        elif field.is_repeated:
            target.extend(value)
        elif field.message_type is not None:
            target.CopyFrom(value)
        else:
            setattr(message, name, value)
    return message


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _values(field: FieldDescriptor, depth: int, most_fields: int | None) -> st.SearchStrategy[Any]:
    if _is_map(field):
        entry = field.message_type
        keys = _single(entry.fields_by_name["key"], depth, most_fields)
        values = _single(entry.fields_by_name["value"], depth, most_fields)
        return st.dictionaries(keys, values, max_size=4)
    one = _single(field, depth, most_fields)
    if not field.is_repeated:
        return one
    many = one.flatmap(lambda value: st.integers(2, 200).map(lambda count: [value] * count))
    return st.one_of(st.lists(one, max_size=3), many)


def _single(field: FieldDescriptor, depth: int, most_fields: int | None) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case _F.CPPTYPE_MESSAGE:
            return messages(field.message_type, depth + 1, most_fields=most_fields)
        case _F.CPPTYPE_BOOL:
            return st.booleans()
        case _F.CPPTYPE_FLOAT | _F.CPPTYPE_DOUBLE:
            return st.one_of(st.sampled_from(_FLOATS), st.floats(width=32))
        case _F.CPPTYPE_STRING if field.type == _F.TYPE_BYTES:
            return st.one_of(st.binary(max_size=20), texts().map(as_bytes_element))
        case _F.CPPTYPE_STRING:
            return texts()
        case kind:
            low, high = _INTS[kind]
            bounds = st.sampled_from((low, high, 0, 1, min(high, 4095), 4096))
            return st.one_of(st.integers(1, 40), bounds, st.integers(low, high))


def texts() -> st.SearchStrategy[str]:
    """Texts that protobuf takes: whatever is no surrogate."""
    some = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
    return st.one_of(st.sampled_from(WORDS), st.sampled_from(NAMES), some, _json())


def _json() -> st.SearchStrategy[str]:
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(NAMES))
    value = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
        ),
        max_leaves=6,
    )
    return value.map(json.dumps)


def as_bytes_element(text: str) -> bytes:
    """As the Open Inference Protocol packs a text into raw contents."""
    encoded = text.encode()
    return len(encoded).to_bytes(4, "little") + encoded


def broken(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes that may be no message: cut, changed, or none from the start."""

    @st.composite
    def damaged(draw: Any) -> bytes:
        content = bytearray(draw(whole))
        if content and draw(st.booleans()):
            content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(content[: draw(st.integers(0, len(content)))])

    return st.one_of(st.binary(max_size=60), damaged())
