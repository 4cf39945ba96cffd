"""Which files an ONNX model keeps its weights in, read from the protobuf wire format alone.

Owns the walk ModelProto.graph.initializer.external_data (fields 7, 5, 13 of onnx.proto), so that a
server can refuse a model that points elsewhere without the onnx package. Knows nothing of stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from artifacts.errors import CorruptArtifactError

_GRAPH = 7  # ModelProto
_INITIALIZER = 5  # GraphProto
_EXTERNAL_DATA = 13  # TensorProto, of StringStringEntryProto{key = 1, value = 2}


def external_locations(model: Path) -> frozenset[str]:
    """Collect the ``location`` of every initializer that lies outside the model file.

    Raises:
        CorruptArtifactError: The file is no protobuf message.
    """
    content = memoryview(model.read_bytes())
    try:
        return frozenset(_locations(content))
    except (IndexError, ValueError) as error:
        raise CorruptArtifactError(f"{model} is no ONNX model: {error}.") from error


def _locations(content: memoryview) -> Iterator[str]:
    for graph in _messages(content, _GRAPH):
        for tensor in _messages(graph, _INITIALIZER):
            for entry in _messages(tensor, _EXTERNAL_DATA):
                key = b"".join(bytes(part) for part in _messages(entry, 1))
                if key == b"location":
                    yield b"".join(bytes(part) for part in _messages(entry, 2)).decode()


def _messages(content: memoryview, wanted: int) -> Iterator[memoryview]:
    """Walk a message's fields and give the length-delimited ones with number ``wanted``."""
    position = 0
    while position < len(content):
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
                if position + length > len(content):
                    raise ValueError("a field is longer than its message")
                if tag >> 3 == wanted:
                    yield content[position : position + length]
                position += length
            case kind:
                raise ValueError(f"unknown wire type {kind}")


def _varint(content: memoryview, position: int) -> tuple[int, int]:
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
