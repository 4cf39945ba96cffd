"""Elements survive packing and unpacking, in both of the protocol's forms."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import open_inference_pb2 as oip
from server.errors import InvalidRequestError
from server.rpc.tensors import add_output, single_elements

SIZES = {"INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8, "FP32": 4, "FP64": 8, "BOOL": 1}
SIZES |= {f"U{name}": size for name, size in SIZES.items() if name.startswith("INT")}


def _integers(name: str) -> st.SearchStrategy[int]:
    bits = 8 * SIZES[name]
    if name.startswith("U"):
        return st.integers(0, 2**bits - 1)
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    **{name: _integers(name) for name in SIZES if "INT" in name},
    "BOOL": st.booleans(),
    "FP32": st.floats(width=32, allow_nan=False),
    "FP64": st.floats(allow_nan=False),
    "BYTES": st.text(st.sampled_from("a\0\né€😀")).map(str.encode),  # of every length in UTF-8,
}
FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# The specification's layouts: little-endian, and a text behind four bytes of its length.
ORACLE = {"BOOL": "<?", "FP32": "<f", "FP64": "<d"}


def packed(datatype: str, value: Any) -> bytes:
    if datatype == "BYTES":
        return len(value).to_bytes(4, "little") + bytes(value)
    if datatype in ORACLE:
        return struct.pack(ORACLE[datatype], value)
    signed = not datatype.startswith("U")
    return int(value).to_bytes(SIZES[datatype], "little", signed=signed)


@st.composite
def typed_elements(draw: st.DrawFn) -> tuple[str, Any]:
    datatype = draw(st.sampled_from(sorted(ELEMENTS)))
    return datatype, draw(ELEMENTS[datatype])


def request(elements: list[tuple[str, Any]], *, raw: bool) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest()
    for index, (datatype, value) in enumerate(elements):
        tensor = message.inputs.add(name=f"i{index}", datatype=datatype, shape=[1])
        if raw:
            message.raw_input_contents.append(packed(datatype, value))
        else:
            getattr(tensor.contents, FIELDS[datatype]).append(value)
    return message


@given(elements=st.lists(typed_elements(), max_size=5), raw=st.booleans())
def test_elements_arrive_as_they_were_sent(elements: list[tuple[str, Any]], *, raw: bool) -> None:
    """Of every datatype, by the layouts of the specification; bytes become texts."""
    expected = [value.decode() if isinstance(value, bytes) else value for _, value in elements]
    found = dict(single_elements(request(elements, raw=raw)))
    assert [f"i{index}" for index in range(len(elements))] == list(found)
    assert expected == list(found.values())


@given(data=st.data(), raw=st.booleans())
def test_outputs_hold_their_values(data: st.DataObject, *, raw: bool) -> None:
    """Any number of elements, in one of the forms and not in the other."""
    datatype = data.draw(st.sampled_from(sorted(ELEMENTS)))
    values = data.draw(st.lists(ELEMENTS[datatype], max_size=5))
    response = oip.ModelInferResponse()
    add_output(response, "o", datatype, values, raw=raw)
    (tensor,) = response.outputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("o", datatype, [len(values)])
    typed = list(getattr(tensor.contents, FIELDS[datatype]))
    if raw:
        assert typed == []
        assert list(response.raw_output_contents) == [b"".join(packed(datatype, v) for v in values)]
    else:
        assert typed == values
        assert not response.raw_output_contents


@given(datatype=st.sampled_from(sorted(ELEMENTS)), content=st.binary(max_size=16))
def test_any_bytes_are_one_element_or_refused(datatype: str, content: bytes) -> None:
    """Of the right length they are taken, and nothing but InvalidRequestError comes of others."""
    message = oip.ModelInferRequest(raw_input_contents=[content])
    message.inputs.add(name="i", datatype=datatype, shape=[1])
    fits = len(content) == SIZES.get(datatype)
    if datatype == "BYTES":
        fits = len(content) >= 4 and int.from_bytes(content[:4], "little") == len(content) - 4
        if fits:
            try:
                content[4:].decode()
            except UnicodeDecodeError:
                fits = False
    if fits:
        assert len(list(single_elements(message))) == 1
    else:
        with pytest.raises(InvalidRequestError, match=r"^inputs\[0\] \(i\): "):
            list(single_elements(message))


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "UINT8", "UINT16"])
def test_narrow_integers_stay_narrow(datatype: str) -> None:
    """The field that they travel in holds more than they do."""
    most = 2 ** (8 * SIZES[datatype] - (not datatype.startswith("U"))) - 1
    assert dict(single_elements(request([(datatype, most)], raw=False))) == {"i0": most}
    with pytest.raises(InvalidRequestError, match=f"does not hold one element of {datatype}"):
        list(single_elements(request([(datatype, most + 1)], raw=False)))


@pytest.mark.parametrize("datatype", sorted(ELEMENTS))
@pytest.mark.parametrize("count", [0, 2])
def test_none_or_two_elements_are_not_one(datatype: str, count: int) -> None:
    """Whatever the shape says."""
    message = oip.ModelInferRequest()
    tensor = message.inputs.add(name="i", datatype=datatype, shape=[1])
    value = b"x" if datatype == "BYTES" else 1
    getattr(tensor.contents, FIELDS[datatype]).extend([value] * count)
    with pytest.raises(InvalidRequestError, match=f"does not hold one element of {datatype}"):
        list(single_elements(message))


def test_contents_of_another_datatype_are_not_looked_at() -> None:
    """An element in the wrong field is none."""
    message = oip.ModelInferRequest()
    tensor = message.inputs.add(name="i", datatype="INT64", shape=[1])
    tensor.contents.int_contents.append(1)
    with pytest.raises(InvalidRequestError, match="does not hold one element of INT64"):
        list(single_elements(message))
