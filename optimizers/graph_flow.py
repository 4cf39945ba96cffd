"""Takes a text through an ONNX graph once, and stops before every group of products of one input.

A visitor sees what flows into the products and may replace them: what comes later sees the change,
as it will be served. The graph is run in sections, each from one stop to the next in a session of
its own, so all of it is computed once. Of the text only what crosses the stop is held: for decoders
the hidden states and the products' input. Knows nothing of what visitors do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.manifest import GraphSpec
from artifacts.runtime import Threads, open_runtime
from optimizers.calibration import within
from optimizers.errors import StageError
from optimizers.linears import Linear, find_linears
from optimizers.publish import MODEL, WEIGHTS
from optimizers.stage import Report, Work
from optimizers.text_inputs import Inputs, caches, inputs_of_runs


@dataclass(frozen=True, slots=True)
class Reached:
    """Products that read the same value, with what flows into them.

    Attributes:
        products: In graph order, at least one.
        inputs: (tokens, K) float32 of each run; all runs together are the text.
    """

    products: tuple[Linear, ...]
    inputs: tuple[NDArray[np.float32], ...]


def visit_products(
    model: Any,
    graph: GraphSpec,
    documents: Sequence[NDArray[np.int64]],
    visit: Callable[[Reached], None],
    *,
    scratch: Path,
    threads: int | None,
) -> None:
    """Visit all products in the order of computation, those of one input together.

    Args:
        model: An ``onnx_ir.Model`` in float32; the visitor may replace the products given to it.
        graph: How it is run.
        documents: Token ids, all of one length.
        visit: Called before the products compute.
        scratch: A folder on a disk with room for the weights between two stops.
        threads: That compute; None for all.

    Raises:
        StageError: The graph branches.
    """
    flow = _Flow(model, graph, inputs_of_runs(graph, documents))
    for products in _by_input(find_linears(model)):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            flow.advance(products[0].node, Path(folder), Threads(count=threads))
        visit(Reached(products, flow.at(products[0].node.inputs[0])))


def visit_calibration(
    model: Any, work: Work, report: Report, visit: Callable[[Reached], None], *, scratch: Path
) -> None:
    """Visit all products with the calibration text of a stage's work flowing through them."""
    spec = work.graph_spec()
    text = within(work.calibration(report), spec.vocab_size)
    visit_products(model, spec, text, visit, scratch=scratch, threads=work.threads)


def _by_input(linears: Sequence[Linear]) -> list[tuple[Linear, ...]]:
    groups: dict[int, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(id(linear.node.inputs[0]), []).append(linear)
    return [tuple(group) for group in groups.values()]


class _Flow:
    """How far the text has come: what of it crosses the place in the graph that it has reached."""

    def __init__(self, model: Any, graph: GraphSpec, inputs: Sequence[Inputs]) -> None:
        self._model = model
        self._graph = graph
        self._inputs = inputs
        self._crossing: list[Any] = []  # values of the model
        self._held: list[Inputs] = [{} for _ in inputs]  # of each run, by the values' names

    def advance(self, node: Any, scratch: Path, threads: Threads) -> None:
        """Compute everything in front of a node that is used from there on."""
        crossing = _crossing(self._model.graph, node)
        before = set(self._crossing)
        wanted = [value for value in crossing if value not in before]
        # None where the products before have given nothing that is used from here on.
        session = open_runtime(self._write_section(wanted, scratch), threads) if wanted else None
        for index, inputs in enumerate(self._inputs):
            held = self._held[index]
            if session is not None:
                feeds = {**inputs, **held, **dict(caches(self._graph, inputs))}
                given = {value.name: feeds[value.name] for value in session.get_inputs()}
                found = session.run([value.name for value in wanted], given)
                held = {**held, **dict(zip([value.name for value in wanted], found, strict=True))}
            self._held[index] = {value.name: held[value.name] for value in crossing}
        self._crossing = crossing

    def at(self, value: Any) -> tuple[NDArray[np.float32], ...]:
        """A value that crosses, of each run: (tokens, K)."""
        arrays = [held[value.name] for held in self._held]
        return tuple(array.reshape(-1, array.shape[-1]) for array in arrays)

    def _write_section(self, wanted: Sequence[Any], folder: Path) -> Path:
        """Write what lies between the values that are held and the wanted ones as a model."""
        import onnx_ir

        graph = self._model.graph
        section = onnx_ir.convenience.extract(graph, [*graph.inputs, *self._crossing], wanted)
        for value in list(section.inputs):
            if not value.uses():
                section.inputs.remove(value)
            elif (array := self._held[0].get(value.name)) is not None:
                value.dtype = onnx_ir.DataType.from_numpy(array.dtype)
                value.shape = onnx_ir.Shape([None] * array.ndim)
        model = onnx_ir.Model(section, ir_version=self._model.ir_version)
        onnx_ir.save(model, folder / MODEL, external_data=WEIGHTS)
        return folder / MODEL


def _crossing(graph: Any, node: Any) -> list[Any]:
    """The values that are computed from the text in front of a node and used from there on.

    Raises:
        StageError: The graph branches, so that its order says nothing.
    """
    depends = set(graph.inputs)
    crossing: dict[Any, None] = {}
    is_behind = False
    for one in graph:
        if any(attribute.type.name.startswith("GRAPH") for attribute in one.attributes.values()):
            raise StageError(
                "The graph has branches, through which a text cannot be followed.",
                remedy="Choose an algorithm or method of quantize that reads no text.",
            )
        is_behind = is_behind or one is node
        used = [value for value in one.inputs if value in depends]
        if is_behind:
            crossing.update((value, None) for value in used if value not in graph.inputs)
        elif used:
            depends.update(one.outputs)
    return list(crossing)
