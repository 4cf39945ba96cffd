"""From a finished chain to an artifact in the store.

Owns which files an artifact has, and the rewriting of its graphs so that whatever they name is
named by its hash. Knows nothing of how the model was made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.manifest import FileEntry, GraphSpec
from artifacts.store import Store
from optimizers.errors import StageError
from optimizers.tokenizer_files import tokenizer_bytes

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
EMBEDDINGS = "embeddings.onnx.data"
PROMPTS = "prompts.onnx"
PROMPTS_WEIGHTS = "prompts.onnx.data"
DATA = (WEIGHTS, EMBEDDINGS, PROMPTS_WEIGHTS)  # only the first is in every artifact
_COPIED = ("tokenizer_config.json", "generation_config.json", "chat_template.jinja")


def add_files(
    store: Store,
    *,
    onnx_folder: Path,
    config_folder: Path,
    text_folder: Path,
    is_spare: bool = False,
) -> tuple[FileEntry, ...]:
    """Keep all files of an artifact as blobs.

    Args:
        store: Where to.
        onnx_folder: Holds ``model.onnx`` and ``model.onnx.data``; perhaps ``prompts.onnx`` and
            more files of weights as well.
        config_folder: The model folder whose ``config.json`` describes these weights.
        text_folder: The original model's folder: tokenizer, template and generation defaults.
        is_spare: The weights are moved out of ``onnx_folder``, which nobody needs any more.
    """
    entries = [
        _added(store, onnx_folder / name, name, is_spare=is_spare)
        for name in DATA
        if (onnx_folder / name).is_file()
    ]
    locations = {entry.name: entry.sha256 for entry in entries}
    contents = {
        name: relocated(onnx_folder / name, locations)
        for name in (MODEL, PROMPTS)
        if (onnx_folder / name).is_file()
    }
    contents["tokenizer.json"] = tokenizer_bytes(text_folder)
    contents["config.json"] = (config_folder / "config.json").read_bytes()
    for name in _COPIED:
        if (text_folder / name).is_file():
            contents[name] = (text_folder / name).read_bytes()
    with tempfile.TemporaryDirectory(dir=store.layout.tmp) as scratch:
        for name, content in contents.items():
            path = Path(scratch) / name
            path.write_bytes(content)
            entries.append(_added(store, path, name))
    return tuple(sorted(entries, key=lambda entry: entry.name))


def published(graph: GraphSpec, files: Iterable[FileEntry]) -> GraphSpec:
    """The same way to run it, with the graph for prompts named by its hash."""
    if graph.forms is None:
        return graph
    digest = next(entry.sha256 for entry in files if entry.name == PROMPTS)
    forms = graph.forms.model_copy(update={"prompts": digest})
    return graph.model_copy(update={"forms": forms})


def _added(store: Store, path: Path, name: str, *, is_spare: bool = False) -> FileEntry:
    digest, size = store.add_blob(path, is_spare=is_spare)
    return FileEntry(name=name, size_bytes=size, sha256=digest)


def relocated(model: Path, locations: Mapping[str, str]) -> bytes:
    """Give an ONNX model's bytes with its external weights in other files.

    Args:
        model: The file.
        locations: By the name of a file that it may refer to, the name that this gets.

    Raises:
        StageError: The model refers to another file.
    """
    import onnx

    loaded = onnx.load(model, load_external_data=False)
    for tensor in _tensors(loaded.graph):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            if entry.value not in locations:
                known = ", ".join(sorted(locations))
                raise StageError(f"{model.name} refers to {entry.value!r} besides {known}.")
            entry.value = locations[entry.value]
    content: bytes = loaded.SerializeToString(deterministic=True)
    return content


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in _graphs(attribute):
                yield from _tensors(inner)


def _graphs(attribute: Any) -> Iterable[Any]:
    return [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs
