"""Requests and answers of the Open Inference Protocol, as a client would write and read them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from protos import open_inference_pb2 as oip

FIELDS = {
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
LETTERS = {"BOOL": "?", "INT32": "i", "INT64": "q", "UINT32": "I", "UINT64": "Q", "FP32": "f"}
LETTERS["FP64"] = "d"


def raw(datatype: str, value: Any) -> bytes:
    """One element as it travels in raw contents."""
    if datatype == "BYTES":
        return struct.pack("<I", len(value)) + bytes(value)
    return struct.pack("<" + LETTERS[datatype], value)


def infer(
    text: str = "hello",
    *,
    model: str = "baseline",
    number: str = "",
    is_raw: bool = True,
    sampling: Mapping[str, Any] | None = None,
    inputs: Mapping[str, tuple[str, Any]] | None = None,
    parameters: Mapping[str, Any] | None = None,
    flags: Mapping[str, bool] | None = None,
) -> oip.ModelInferRequest:
    """A request; ``inputs`` are names with datatype and value, ``flags`` those that are BOOL."""
    request = oip.ModelInferRequest(model_name=model, id=number)
    given: dict[str, tuple[str, Any]] = {"text_input": ("BYTES", text.encode())}
    if sampling is not None:
        given["sampling_parameters"] = ("BYTES", json.dumps(sampling).encode())
    given.update({name: ("BOOL", value) for name, value in (flags or {}).items()})
    given.update(inputs or {})
    for name, (datatype, value) in given.items():
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[1])
        if is_raw:
            request.raw_input_contents.append(raw(datatype, value))
        else:
            getattr(tensor.contents, FIELDS[datatype]).append(value)
    for name, value in (parameters or {}).items():
        kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(request.parameters[name], kinds[type(value)], value)
    return request


def outputs(response: oip.ModelInferResponse) -> dict[str, list[Any]]:
    """Elements of each output, however they travelled; bytes as texts."""
    found: dict[str, list[Any]] = {}
    for index, tensor in enumerate(response.outputs):
        if response.raw_output_contents:
            values = _elements(response.raw_output_contents[index], tensor.datatype)
        else:
            values = list(getattr(tensor.contents, FIELDS[tensor.datatype]))
        assert [len(values)] == list(tensor.shape)
        found[tensor.name] = [v.decode() if isinstance(v, bytes) else v for v in values]
    return found


def _elements(content: bytes, datatype: str) -> list[Any]:
    if datatype != "BYTES":
        return [value for (value,) in struct.iter_unpack("<" + LETTERS[datatype], content)]
    values, at = [], 0
    while at < len(content):
        (size,) = struct.unpack_from("<I", content, at)
        values.append(content[at + 4 : at + 4 + size])
        at += 4 + size
    return values
