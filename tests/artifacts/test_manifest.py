"""What an artifact's identity depends on."""

from __future__ import annotations

from artifacts.manifest import (
    FileEntry,
    GenerationDefaults,
    GraphSpec,
    KvLayer,
    content_digest,
)

FILES = (FileEntry(name="model.onnx", size_bytes=3, sha256="0" * 64),)
GENERATION = GenerationDefaults(eos_token_ids=(0,))
LAYER = KvLayer(
    past_key="a",
    past_value="b",
    present_key="c",
    present_value="d",
    heads=2,
    key_dim=4,
    value_dim=4,
)
GRAPH = GraphSpec(
    form="packed", vocab_size=8, max_length=16, layers=(LAYER,), inputs=("input_ids",)
)


def test_an_artifact_keeps_its_digest_when_graphs_learn_something_new() -> None:
    """The digest of a graph from before caches had a type, as the version then computed it."""
    digest = content_digest(FILES, GRAPH, GENERATION)
    assert digest == "d5cdcf054568bd15a235807170a055264dded527e150ffc7abc1eae6b4c6cfe1"


def test_another_cache_is_another_artifact() -> None:
    """How a graph is run counts."""
    changed = GRAPH.model_copy(update={"layers": (LAYER.model_copy(update={"dtype": "int8"}),)})
    assert content_digest(FILES, changed, GENERATION) != content_digest(FILES, GRAPH, GENERATION)
