"""Turns a decoder graph with GroupQueryAttention into the packed form of ``artifacts.session``.

Owns the surgery: live tokens are scattered to padded rows before each attention and gathered after
it, the cache keeps its place, and only wanted positions reach the language-model head. Works on
any graph of the shape ``input_ids (1, n) -> logits (1, n, vocab)`` whose every attention is one
``com.microsoft.GroupQueryAttention`` node. Knows nothing of where the graph came from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from artifacts.manifest import GraphSpec, KvLayer
from optimizers.export.decoder import Decoder, RotaryTable
from optimizers.export.scoring import add_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

ATTENTION = "GroupQueryAttention"
# Places among the inputs of GroupQueryAttention.
_QUERY, _KEY, _VALUE, _PAST_KEY, _PAST_VALUE, _SEQLENS_K, _TOTAL, _COS, _SIN = range(9)
_POSITIONS, _BIAS, _QUERY_SEQLENS = 9, 10, 16
# What may stand between the head's product and the logits (scaling, soft cap, bias).
_AFTER_HEAD = frozenset({"Add", "Mul", "Div", "Tanh", "Cast", "Identity", "Sub"})


class UnpackableError(Exception):
    """The graph cannot be brought into the packed form; the message says why."""


def attention_nodes(model: Any) -> list[Any]:
    """Return the attention nodes in the order of the layers whose cache they read."""
    nodes = [node for node in model.graph if node.op_type == ATTENTION]
    return sorted(nodes, key=lambda node: _layer_index(node.inputs[_PAST_KEY].name))


def pack(model: Any, decoder: Decoder, tables: Sequence[RotaryTable] | None) -> GraphSpec:
    """Edit ``model`` (an ``onnx_ir.Model``) in place into the packed form.

    Args:
        model: A graph with one GroupQueryAttention per layer.
        decoder: Its windows and lengths are put into the graph.
        tables: Per layer, the rotary table for nodes that rotate; None keeps the graph's own.

    Raises:
        UnpackableError: Something in the graph has no packed form.
    """
    from onnx_ir.passes import common as passes

    nodes = attention_nodes(model)
    if len(nodes) != decoder.layers:
        raise UnpackableError(f"{len(nodes)} of {decoder.layers} layers have a known attention")
    surgery = _Surgery(model)
    distinct = list({id(table): table for table in tables or ()}.values())
    for layer, (node, window) in enumerate(zip(nodes, decoder.windows, strict=True)):
        surgery.scatter(layer, node)
        surgery.set_window(node, window)
        if tables is not None:
            kind = next(i for i, table in enumerate(distinct) if table is tables[layer])
            surgery.set_rotary(node, tables[layer], f"rotary.{kind}")
        surgery.gather(layer, node)
    surgery.select_logits()
    passes.RemoveUnusedNodesPass()(model)
    # Bodies that stand in for ONNX Runtime's own operators would only hide its kernels.
    for key in [key for key in model.functions if key[0] == "com.microsoft"]:
        del model.functions[key]
    surgery.close(decoder.vocab_size)
    add_scores(model, decoder.vocab_size)
    return _spec(model, decoder)


class _Surgery:
    """Edits of one graph; keeps the new inputs and the constants that layers share."""

    def __init__(self, model: Any) -> None:
        import onnx_ir as ir

        self.ir = ir
        self.graph = model.graph
        int64, int32 = ir.DataType.INT64, ir.DataType.INT32
        self.pad = self._input("pad_index", int64, ["rows", "width", 2])
        self.unpad = self._input("unpad_index", int64, [1, "tokens", 2])
        self.query_seqlens = self._input("query_seqlens", int32, ["rows"])
        self.seqlens_k = self._input("seqlens_k", int32, ["rows"])
        self.total = self._input("total_sequence_length", int32, [])
        self.wanted = self._input("logit_positions", int64, ["logits"])
        self.constants: dict[str, Any] = {}

    def scatter(self, layer: int, node: Any) -> None:
        """Give attention padded rows (rows, width, heads * dim) made of the live tokens."""
        if len(node.inputs) > _BIAS and node.inputs[_BIAS] is not None:
            raise UnpackableError("attention adds a bias to its scores")
        for place in (_QUERY, _KEY, _VALUE):
            value = node.inputs[place]
            if value is None:
                continue  # packed projections come in the query's place
            name = f"packed.{layer}.scatter.{place}"
            rows = self._node("GatherND", [value, self.pad], name)
            self.graph.insert_before(node, [rows])
            node.replace_input_with(place, rows.outputs[0])
        node.replace_input_with(_SEQLENS_K, self.seqlens_k)
        node.replace_input_with(_TOTAL, self.total)
        node.resize_inputs(_QUERY_SEQLENS + 1)
        # Positions follow from the lengths; an explicit list would be of the dense form.
        node.replace_input_with(_POSITIONS, None)
        node.replace_input_with(_QUERY_SEQLENS, self.query_seqlens)

    def set_window(self, node: Any, window: int | None) -> None:
        """Make attention see ``window`` tokens, the current one included."""
        node.attributes.pop("local_window_size", None)
        if window is not None:
            node.attributes["local_window_size"] = self.ir.AttrInt64("local_window_size", window)

    def set_rotary(self, node: Any, table: RotaryTable, name: str) -> None:
        """Put the layer's own table, stored under ``name``, in the place of the graph's."""
        # No attribute of the operator: it reads from the table how much of a head rotates.
        node.attributes.pop("rotary_embedding_dim", None)
        rotates = node.attributes.get("do_rotary")
        if rotates is None or rotates.value == 0:
            return
        width = int(node.inputs[_COS].shape[1])
        if width != table.cos.shape[1]:
            raise UnpackableError(
                f"rotary tables have {width} columns where transformers has {table.cos.shape[1]}"
            )
        node.replace_input_with(_COS, self._constant(f"{name}.cos", table.cos))
        node.replace_input_with(_SIN, self._constant(f"{name}.sin", table.sin))

    def gather(self, layer: int, node: Any) -> None:
        """Turn attention's padded rows back into live tokens (1, n, heads * dim)."""
        output = node.outputs[0]
        users = list(output.uses())
        back = self._node("GatherND", [output, self.unpad], f"packed.{layer}.gather")
        self.graph.insert_after(node, [back])
        for user, place in users:
            user.replace_input_with(place, back.outputs[0])

    def select_logits(self) -> None:
        """Let only wanted positions reach the language-model head."""
        node = next(out for out in self.graph.outputs if out.name == "logits").producer()
        while node is not None and node.op_type in _AFTER_HEAD:
            node = next((v.producer() for v in node.inputs if v and v.producer()), None)
        if node is None or node.op_type not in {"MatMul", "FusedMatMul"}:
            raise UnpackableError("the language-model head is not one matrix product")
        wanted = self._node("Gather", [node.inputs[0], self.wanted], "packed.wanted", axis=1)
        self.graph.insert_before(node, [wanted])
        node.replace_input_with(0, wanted.outputs[0])

    def close(self, vocab_size: int) -> None:
        """Declare the shapes of the new form and drop inputs that nothing reads any more."""
        shape = self.ir.Shape
        for value in list(self.graph.inputs):
            if value.name in ("attention_mask", "position_ids") and not value.uses():
                self.graph.inputs.remove(value)
            elif value.name == "attention_mask":
                raise UnpackableError("the mask is read outside of attention")
            elif value.name in ("input_ids", "position_ids"):
                value.shape = shape([1, "tokens"])
        for node in self.graph:
            for output in node.outputs:
                output.shape = None  # of the dense form; ONNX Runtime infers them anew
        for node in (node for node in self.graph if node.op_type == ATTENTION):
            for past, present in ((_PAST_KEY, 1), (_PAST_VALUE, 2)):
                value = node.inputs[past]
                value.shape = shape(["rows", value.shape[1], "max_length", value.shape[3]])
                node.outputs[present].shape = value.shape
        logits = next(out for out in self.graph.outputs if out.name == "logits")
        logits.shape = shape([1, "logits", vocab_size])

    def _input(self, name: str, dtype: Any, shape: list[Any]) -> Any:
        kind, dims = self.ir.TensorType(dtype), self.ir.Shape(shape)
        value = self.ir.Value(name=name, type=kind, shape=dims)
        self.graph.inputs.append(value)
        return value

    def _constant(self, name: str, array: Any) -> Any:
        if name not in self.constants:
            tensor = self.ir.tensor(array, name=name)
            kind = self.ir.TensorType(tensor.dtype)
            value = self.ir.Value(name=name, const_value=tensor, type=kind, shape=tensor.shape)
            self.graph.register_initializer(value)
            self.constants[name] = value
        return self.constants[name]

    def _node(self, op_type: str, inputs: list[Any], name: str, **attributes: int) -> Any:
        node = self.ir.node(op_type, inputs, attributes or None, name=name)
        node.outputs[0].name = name
        return node


def _layer_index(name: str) -> int:
    """Read 3 from ``past_key_values.3.key``."""
    return int(name.split(".")[1])


def _spec(model: Any, decoder: Decoder) -> GraphSpec:
    layers = []
    for node in attention_nodes(model):
        key, value = node.inputs[_PAST_KEY], node.inputs[_PAST_VALUE]
        layers.append(
            KvLayer(
                past_key=key.name,
                past_value=value.name,
                present_key=node.outputs[1].name,
                present_value=node.outputs[2].name,
                heads=int(key.shape[1]),
                key_dim=int(key.shape[3]),
                value_dim=int(value.shape[3]),
            )
        )
    return GraphSpec(
        form="packed",
        vocab_size=decoder.vocab_size,
        max_length=decoder.max_length,
        layers=tuple(layers),
        inputs=tuple(value.name for value in model.graph.inputs),
    )
