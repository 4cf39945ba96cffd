"""Which files an ONNX model keeps its weights in, read from the protobuf wire format alone.

Owns the walk through every place where onnx.proto allows a tensor, and hence external data, so that
a server can refuse a model that points elsewhere without the onnx package. Knows nothing of stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from artifacts.errors import CorruptArtifactError

# By message of onnx.proto: the fields that lead to a tensor, and what message each holds.
FIELDS: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
_KEY, _VALUE = 1, 2  # StringStringEntryProto
_LOCATION = b"location"
_DEEPEST = 100  # messages inside each other, as protobuf's own readers have it

_Span = tuple[int, int]


def external_locations(model: Path) -> frozenset[str]:
    """Collect the ``location`` of every tensor that lies outside the model file.

    Raises:
        CorruptArtifactError: The file is no protobuf message.
    """
    content = model.read_bytes()
    try:
        return frozenset(_locations(content))
    except (IndexError, ValueError) as error:
        raise CorruptArtifactError(f"{model} is no ONNX model: {error}.") from error


def _locations(content: bytes) -> Iterator[str]:
    waiting = [("ModelProto", (0, len(content)), 1)]
    while waiting:
        kind, span, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} messages lie inside each other")
        if kind == "StringStringEntryProto":
            entry = {number: content[slice(*inner)] for number, inner in _messages(content, span)}
            if entry.get(_KEY) == _LOCATION:
                yield entry.get(_VALUE, b"").decode()
            continue
        inside = FIELDS[kind]
        for number, inner in _messages(content, span):
            # Nearly all nodes end here: what does not contain the word has no location.
            if number in inside and content.find(_LOCATION, *inner) >= 0:
                waiting.append((inside[number], inner, depth + 1))


def _messages(content: bytes, span: _Span) -> Iterator[tuple[int, _Span]]:
    """Walk a message's fields and give number and place of the length-delimited ones."""
    position, end = span
    while position < end:
        tag, position = _varint(content, position)
        match tag & 7:
            case 0:
                _, position = _varint(content, position)
            case 1:
                position += 8
            case 5:
                position += 4
            case 2:
                length, position = _varint(content, position)
                if position + length > end:
                    raise ValueError("a field is longer than its message")
                yield tag >> 3, (position, position + length)
                position += length
            case kind:
                raise ValueError(f"unknown wire type {kind}")
    if position > end:
        raise ValueError("a field is longer than its message")


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
