"""From a finished chain to an artifact in the store.

Owns which files an artifact has, and the rewriting of ``model.onnx`` so that its weights' name is
their hash. Knows nothing of how the model was made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from artifacts.digest import is_sha256
from artifacts.manifest import FileEntry
from artifacts.store import Store
from optimizers.errors import StageError
from optimizers.tokenizer_files import tokenizer_bytes

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
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
        onnx_folder: Holds ``model.onnx`` and ``model.onnx.data``.
        config_folder: The model folder whose ``config.json`` describes these weights.
        text_folder: The original model's folder: tokenizer, template and generation defaults.
        is_spare: The weights are moved out of ``onnx_folder``, which nobody needs any more.
    """
    digest, size = store.add_blob(onnx_folder / WEIGHTS, is_spare=is_spare)
    entries = [FileEntry(name=WEIGHTS, size_bytes=size, sha256=digest)]
    contents = {
        MODEL: relocated(onnx_folder / MODEL, digest),
        "tokenizer.json": tokenizer_bytes(text_folder),
        "config.json": (config_folder / "config.json").read_bytes(),
    }
    for name in _COPIED:
        if (text_folder / name).is_file():
            contents[name] = (text_folder / name).read_bytes()
    with tempfile.TemporaryDirectory(dir=store.layout.tmp) as scratch:
        for name, content in contents.items():
            path = Path(scratch) / name
            path.write_bytes(content)
            digest, size = store.add_blob(path)
            entries.append(FileEntry(name=name, size_bytes=size, sha256=digest))
    return tuple(sorted(entries, key=lambda entry: entry.name))


def relocated(model: Path, location: str) -> bytes:
    """Give an ONNX model's bytes with all external weights moved to the file ``location``.

    Raises:
        StageError: The model refers to a file other than its own weights.
    """
    import onnx

    loaded = onnx.load(model, load_external_data=False)
    for tensor in _tensors(loaded.graph):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            if entry.value != WEIGHTS and not (is_sha256(location) and entry.value == location):
                raise StageError(f"{MODEL} refers to {entry.value!r} besides {WEIGHTS}.")
            entry.value = location
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
