"""Tensors of the Open Inference Protocol: one element in, elements out, raw or typed.

Owns the protocol's datatypes and layouts (specification of KServe, version 2). Knows nothing of
what the tensors mean.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protos import open_inference_pb2 as oip
from server.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class _Datatype:
    field: str  # of InferTensorContents
    layout: str  # struct's letter; empty for bytes with their length before them


_DATATYPES: Mapping[str, _Datatype] = {
    "BOOL": _Datatype("bool_contents", "?"),
    "INT8": _Datatype("int_contents", "b"),
    "INT16": _Datatype("int_contents", "h"),
    "INT32": _Datatype("int_contents", "i"),
    "INT64": _Datatype("int64_contents", "q"),
    "UINT8": _Datatype("uint_contents", "B"),
    "UINT16": _Datatype("uint_contents", "H"),
    "UINT32": _Datatype("uint_contents", "I"),
    "UINT64": _Datatype("uint64_contents", "Q"),
    "FP32": _Datatype("fp32_contents", "f"),
    "FP64": _Datatype("fp64_contents", "d"),
    "BYTES": _Datatype("bytes_contents", ""),
}

# How MLServer's clients say that bytes are a text, which here they always are.
_IGNORED = frozenset({"content_type"})


def single_elements(request: oip.ModelInferRequest) -> Iterator[tuple[str, Any]]:
    """The name and the one element of each input; bytes are texts in UTF-8.

    Raises:
        InvalidRequestError: An input is of another size or type than it says.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequestError(
            "raw_input_contents",
            f"has {len(raw)} entries for {len(request.inputs)} inputs",
            "send one for each input, or none",
        )
    names: set[str] = set()
    for index, tensor in enumerate(request.inputs):
        field = f"inputs[{index}] ({tensor.name[:64]})"
        if tensor.name in names:
            raise InvalidRequestError(field, "is there twice", "send each input once")
        names.add(tensor.name)
        _check_form(tensor, field, raw=bool(raw))
        datatype = _DATATYPES.get(tensor.datatype)
        if datatype is None:
            known = ", ".join(_DATATYPES)
            raise InvalidRequestError(field, "has an unknown datatype", f"use one of: {known}")
        if any(size != 1 for size in tensor.shape):
            shape = list(tensor.shape)[:8]
            raise InvalidRequestError(
                field, f"has shape {shape}", "send one element, with shape [1] or [1, 1]"
            )
        element = _unpacked(raw[index], datatype) if raw else _typed(tensor.contents, datatype)
        if element is None:
            raise InvalidRequestError(
                field, f"does not hold one element of {tensor.datatype}", "send exactly one"
            )
        yield tensor.name, _text(element, field) if isinstance(element, bytes) else element


def add_output(
    response: oip.ModelInferResponse, name: str, datatype: str, values: Sequence[Any], *, raw: bool
) -> None:
    """Add a one-dimensional output, as bytes or in the typed field."""
    tensor = response.outputs.add(name=name, datatype=datatype, shape=[len(values)])
    kind = _DATATYPES[datatype]
    if not raw:
        getattr(tensor.contents, kind.field).extend(values)
    elif kind.layout:
        packed = struct.pack(f"<{len(values)}{kind.layout}", *values)
        response.raw_output_contents.append(packed)
    else:
        response.raw_output_contents.append(
            b"".join(struct.pack("<I", len(value)) + value for value in values)
        )


def _check_form(tensor: oip.ModelInferRequest.InferInputTensor, field: str, *, raw: bool) -> None:
    """Refuse elements that lie elsewhere than where they are looked for."""
    for name in tensor.parameters:
        if name not in _IGNORED:
            raise InvalidRequestError(
                f"{field}.parameters.{name[:64]}", "is not served", "send the element itself"
            )
    if raw and tensor.HasField("contents"):
        raise InvalidRequestError(
            f"{field}.contents", "is set beside raw_input_contents", "send one of them"
        )


def _unpacked(raw: bytes, datatype: _Datatype) -> Any:
    if datatype.layout:
        if len(raw) != struct.calcsize(f"<{datatype.layout}"):
            return None
        return struct.unpack(f"<{datatype.layout}", raw)[0]
    if len(raw) < 4 or struct.unpack_from("<I", raw)[0] != len(raw) - 4:
        return None
    return raw[4:]


def _typed(contents: oip.InferTensorContents, datatype: _Datatype) -> Any:
    values = getattr(contents, datatype.field)
    if len(values) != 1:
        return None
    if datatype.layout:
        try:  # narrow integers travel in wider fields
            struct.pack(datatype.layout, values[0])
        except struct.error:
            return None
    return values[0]


def _text(element: bytes, field: str) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(field, "is not UTF-8", "encode the text in UTF-8") from error
