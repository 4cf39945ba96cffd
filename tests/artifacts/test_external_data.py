"""Every place where a model can keep a tensor elsewhere is looked into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, SparseTensorProto, TensorProto, helper

from artifacts.errors import CorruptArtifactError
from artifacts.external_data import FIELDS, external_locations


def _tensor(location: str) -> TensorProto:
    tensor = TensorProto(name="w", dims=[2], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def _sparse(*, values: bool) -> SparseTensorProto:
    here = TensorProto(name="i", dims=[1], data_type=TensorProto.INT64, int64_data=[0])
    if values:
        return SparseTensorProto(values=_tensor("there"), indices=here, dims=[2])
    return SparseTensorProto(values=here, indices=_tensor("there"), dims=[2])


def _graph(*attributes: AttributeProto, **fields: Any) -> GraphProto:
    node = helper.make_node("Constant", [], ["w"])
    node.attribute.extend(attributes)
    return GraphProto(name="g", node=[node], **fields)


def _attribute(**field: Any) -> AttributeProto:
    return AttributeProto(name="a", **field)


def _model(graph: GraphProto) -> ModelProto:
    return helper.make_model(graph)


def _function(**fields: Any) -> ModelProto:
    model = _model(_graph())
    model.functions.add(name="f", domain="d", **fields)
    return model


def _training(**fields: Any) -> ModelProto:
    model = _model(_graph())
    model.training_info.add(**fields)
    return model


_HELD = _attribute(t=_tensor("there"))
PLACES: dict[str, Callable[[], ModelProto]] = {
    "initializer": lambda: _model(_graph(initializer=[_tensor("there")])),
    "sparse-values": lambda: _model(_graph(sparse_initializer=[_sparse(values=True)])),
    "sparse-indices": lambda: _model(_graph(sparse_initializer=[_sparse(values=False)])),
    "constant": lambda: _model(_graph(_HELD)),
    "tensors": lambda: _model(_graph(_attribute(tensors=[_tensor("there")]))),
    "sparse-tensor": lambda: _model(_graph(_attribute(sparse_tensor=_sparse(values=True)))),
    "sparse-tensors": lambda: _model(_graph(_attribute(sparse_tensors=[_sparse(values=True)]))),
    "branch": lambda: _model(_graph(_attribute(g=_graph(initializer=[_tensor("there")])))),
    "branches": lambda: _model(_graph(_attribute(graphs=[_graph(_HELD)]))),
    "branch-in-a-branch": lambda: _model(_graph(_attribute(g=_graph(_attribute(g=_graph(_HELD)))))),
    "function": lambda: _function(node=_graph(_HELD).node),
    "function-default": lambda: _function(attribute_proto=[_HELD]),
    "training": lambda: _training(algorithm=_graph(initializer=[_tensor("there")])),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_location_is_found_wherever_it_is(tmp_path: Path, place: str) -> None:
    """ONNX Runtime would open the file that any of these names."""
    path = tmp_path / "model.onnx"
    path.write_bytes(PLACES[place]().SerializeToString())
    assert external_locations(path) == {"there"}


def test_every_field_of_onnx_that_leads_to_a_tensor_is_known() -> None:
    """The installed onnx package's own description says which those are, by number."""
    file = ModelProto.DESCRIPTOR.file
    messages = {
        name: {field.number: field.message_type.name for field in kind.fields if field.message_type}
        for name, kind in file.message_types_by_name.items()
    }
    leading = {"TensorProto"}
    while True:
        more = {name for name, fields in messages.items() if leading & set(fields.values())}
        if more <= leading:
            break
        leading |= more
    expected = {
        name: {number: kind for number, kind in messages[name].items() if kind in leading}
        for name in leading - {"TensorProto"}
    }
    external = TensorProto.DESCRIPTOR.fields_by_name["external_data"]
    expected["TensorProto"] = {external.number: external.message_type.name}
    assert expected == FIELDS


def test_tensors_inside_the_file_have_no_location(tmp_path: Path) -> None:
    """A word that looks like the key is none."""
    path = tmp_path / "model.onnx"
    held = helper.make_tensor("location", TensorProto.FLOAT, [1], [1.0])
    onnx.save(_model(_graph(_attribute(t=held), initializer=[held])), path)
    assert external_locations(path) == frozenset()


def test_the_last_of_two_keys_counts(tmp_path: Path) -> None:
    """As in every protobuf reader: nobody hides a location behind another key."""
    entry = _field(1, b"abc") + _field(1, b"location") + _field(2, b"there")
    path = tmp_path / "model.onnx"
    path.write_bytes(_field(7, _field(5, _field(13, entry))))
    (tensor,) = onnx.load(path, load_external_data=False).graph.initializer
    assert tensor.external_data[0].key == "location"
    assert external_locations(path) == {"there"}


@pytest.mark.parametrize(("levels", "is_refused"), [(20, False), (60, True)])
def test_a_nest_without_end_is_refused(tmp_path: Path, levels: int, *, is_refused: bool) -> None:
    """A file that is made to be walked for ever is no model; protobuf's own readers refuse it."""
    graph = _graph(_HELD).SerializeToString()
    for _ in range(levels):  # as the graph of an attribute of a node of another graph
        graph = _field(1, _field(5, _field(6, graph)))
    path = tmp_path / "model.onnx"
    path.write_bytes(_field(7, graph))
    if is_refused:
        with pytest.raises(CorruptArtifactError, match="inside each other"):
            external_locations(path)
    else:
        assert external_locations(path) == {"there"}


def _field(number: int, content: bytes) -> bytes:
    """One length-delimited field of a message."""
    length, digits = len(content), []
    while length > 0x7F:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *digits, length]) + content
