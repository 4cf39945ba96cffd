"""Making all layers narrower: what goes, that nothing else changes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.protocol import Built
from artifacts.store import Store
from benchmarks import zoo
from optimizers.blocks import decoder_blocks
from optimizers.dimensions import HIDDEN, Space, Widths, find_axes, read_widths
from optimizers.errors import StageError
from optimizers.export import export
from optimizers.narrowing import narrow, narrowed_config
from optimizers.spec import parse_chain
from optimizers.stage import Outcome
from optimizers.torch_models import load_module
from optimizers.unit_scores import activations, magnitudes
from tests.optimizers.conftest import Child, apply_stage, windows

FFN, GROUPS, HEAD = 128, 2, 16
# By model: what takes the feed-forward channels and the heads, and whether heads are a field of
# their own. GPT-2's are transposed and fused, Phi-3's fused, NeoX' fused head by head.
MODELS = {
    "llama": ("mlp.down_proj", "self_attn.o_proj"),
    "llama_linear_rope": ("mlp.down_proj", "self_attn.o_proj"),
    "qwen3": ("mlp.down_proj", "self_attn.o_proj"),
    "gemma3": ("mlp.down_proj", "self_attn.o_proj"),
    "phi3": ("mlp.down_proj", "self_attn.o_proj"),
    "phi": ("mlp.fc2", "self_attn.dense"),
    "gpt2": ("mlp.c_proj", None),
    "gpt_neox": ("mlp.dense_4h_to_h", None),
    "opt": ("fc2", None),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give a small random model by name."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = zoo.write_model(tmp_path_factory.mktemp("models") / name, name)
        return made[name]

    return folder


def _apply(folder: Path, target: Path, **fields: Any) -> tuple[Outcome, Any]:
    item = {"restructure": {"method": "width", "round_to": 16, **fields}}
    return apply_stage(folder, target, item)


def _logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = module(input_ids=torch.from_numpy(np.stack(windows()))).logits
    return logits


def _inputs_of(module: Any, layers: list[Any]) -> list[np.ndarray]:
    """What flows into each layer when a module reads the text: (tokens, inputs) float64."""
    seen: list[np.ndarray] = []
    handles = [
        layer.register_forward_pre_hook(
            lambda _, given: seen.append(given[0].reshape(-1, given[0].shape[-1]).double().numpy())
        )
        for layer in layers
    ]
    _logits(module)
    for handle in handles:
        handle.remove()
    return seen


def _silence(layer: Any, gone: np.ndarray) -> None:
    """Have a layer read zeros in place of what is to go."""

    def before(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0] * torch.from_numpy(~gone), *given[1:])

    layer.register_forward_pre_hook(before)


def _lowest(scores: np.ndarray, count: int) -> np.ndarray:
    gone = np.zeros(len(scores), bool)
    gone[np.argsort(scores, kind="stable")[:count]] = True
    return gone


def _in_each_block(module: Any, path: str) -> list[Any]:
    return [block.get_submodule(path) for block in decoder_blocks(module)]


@pytest.mark.parametrize("name", MODELS)
def test_what_goes_is_as_if_it_were_silent(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Saved and loaded again, it predicts as the whole one whose quietest units are zeros.

    The choice is made again here, from what flows through the whole model.
    """
    down, out = MODELS[name]
    whole = load_module(folder_of(name))
    width = _in_each_block(whole, down)[0].weight.shape[0 if name == "gpt2" else 1]
    fields: dict[str, Any] = {"ffn": 0.75, "score": "activation"}
    silenced = []
    for layer, seen in zip(
        _in_each_block(whole, down), _inputs_of(whole, _in_each_block(whole, down)), strict=True
    ):
        silenced.append((layer, _lowest(np.abs(seen).mean(axis=0), width // 4)))
    if out is not None:
        groups = int(whole.config.num_key_value_heads)
        fields["kv_groups"] = groups - 1
        layers = _in_each_block(whole, out)
        for layer, seen in zip(layers, _inputs_of(whole, layers), strict=True):
            norms = np.linalg.norm(seen.reshape(len(seen), groups, -1), axis=2).mean(axis=0)
            per_group = seen.shape[1] // groups
            silenced.append((layer, np.repeat(_lowest(norms, 1), per_group)))
    outcome, module = _apply(folder_of(name), tmp_path / "out", **fields)
    for layer, gone in silenced:
        _silence(layer, gone)
    torch.testing.assert_close(_logits(module), _logits(whole), atol=2e-5, rtol=1e-4)
    assert outcome.parameters == module.num_parameters() < whole.num_parameters()
    assert f"feed-forward channels {width} to {width * 3 // 4}" in outcome.notes[0]


def test_another_choice_gives_another_model(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The comparison above can fail: the two scores choose differently."""
    _, one = _apply(folder_of("llama"), tmp_path / "one", ffn=0.75)
    _, two = _apply(folder_of("llama"), tmp_path / "two", ffn=0.75, score="magnitude")
    assert (_logits(one) - _logits(two)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "llama3_rope", "qwen2", "phi3", "olmo2", "granite"])
def test_a_smaller_hidden_size_keeps_the_same_channels_everywhere(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every weight of the result is the slice of the original's; heads stay as wide as they were.

    llama3_rope has a head that is its embedding.
    """
    outcome, module = _apply(folder_of(name), tmp_path / "out", hidden=48)
    whole = load_module(folder_of(name))
    embedding = whole.get_input_embeddings().weight
    slim = module.get_input_embeddings().weight
    places = [int((embedding.T == column[:, None].T).all(dim=1).nonzero()) for column in slim.T]
    assert places == sorted(set(places))
    assert len(places) == 48 == module.config.hidden_size
    before = dict(whole.named_parameters())
    for key, parameter in module.named_parameters():
        old = before[key]
        for place, (size, now) in enumerate(zip(old.shape, parameter.shape, strict=True)):
            if size != now:
                old = old.index_select(place, torch.tensor(places))
        assert torch.equal(old, parameter), key
    assert module.config.head_dim == HEAD
    assert outcome.notes == ("hidden size 64 to 48",)
    tied = module.get_output_embeddings().weight is slim
    assert tied == whole.config.tie_word_embeddings
    assert torch.isfinite(_logits(module)).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "olmo2"])
def test_activity_is_the_mean_norm_of_what_a_unit_hands_on(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    """Computed again for the hidden size, from what the layers that read it see."""
    readers = {
        "llama": ("self_attn.q_proj", "mlp.up_proj"),
        "gpt2": ("attn.c_attn", "mlp.c_fc"),
        "gpt_neox": ("attention.query_key_value", "mlp.dense_h_to_4h"),
        "olmo2": ("self_attn.k_proj", "mlp.gate_proj"),
    }[name]
    module = load_module(folder_of(name))
    layers = [layer for reader in readers for layer in _in_each_block(module, reader)]
    seen = _inputs_of(module, [*layers, module.get_output_embeddings()])
    expected = sum(np.abs(states).mean(axis=0) for states in seen)
    axes = find_axes(module, read_widths(module))
    found = activations(module, axes, windows(), weighted=False)[HIDDEN]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_contribution_is_activity_times_the_weights_that_read_it(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    """Computed again for channels, groups of heads, and the hidden size."""
    down, out, query, up = {
        "llama": ("mlp.down_proj", "self_attn.o_proj", "self_attn.q_proj", "mlp.gate_proj"),
        "gpt2": ("mlp.c_proj", "attn.c_proj", "attn.c_attn", "mlp.c_fc"),
    }[name]
    module = load_module(folder_of(name))
    found = activations(module, find_axes(module, read_widths(module)), windows(), weighted=True)

    def weighted(layers: list[Any], along: int) -> list[np.ndarray]:
        return [
            np.abs(seen) * np.linalg.norm(layer.weight.detach().double().numpy(), axis=along)
            for layer, seen in zip(layers, _inputs_of(module, layers), strict=True)
        ]

    along = 1 if name == "gpt2" else 0  # its weights lie transposed
    channels = weighted(_in_each_block(module, down), along)[1].mean(axis=0)
    np.testing.assert_allclose(found[Space("ffn", 1)].numpy(), channels, rtol=1e-5)
    heads = weighted(_in_each_block(module, out), along)[1]
    groups = np.linalg.norm(heads.reshape(len(heads), 4 if along else GROUPS, -1), axis=2)
    np.testing.assert_allclose(found[Space("kv_groups", 1)].numpy(), groups.mean(axis=0), rtol=1e-5)
    pairs = zip(_in_each_block(module, query), _in_each_block(module, up), strict=True)
    layers = [layer for pair in pairs for layer in pair]  # in the order in which they compute
    hidden = sum(states.mean(axis=0) for states in weighted(layers, along))
    hidden += weighted([module.get_output_embeddings()], along=0)[0].mean(axis=0)
    np.testing.assert_allclose(found[HIDDEN].numpy(), hidden, rtol=1e-5)


def test_magnitude_is_the_norm_of_all_weights_of_a_unit(
    folder_of: Callable[[str], Path],
) -> None:
    """A channel's rows and column, a group's rows of four matrices; fused layers part by part."""
    module = load_module(folder_of("llama")).requires_grad_(requires_grad=False)
    found = magnitudes(module, find_axes(module, read_widths(module)))
    block = decoder_blocks(module)[1]
    gate, up, down = (block.mlp.get_submodule(f"{k}_proj").weight for k in ("gate", "up", "down"))
    channel = torch.cat([gate[5], up[5], down[:, 5]]).double().norm()
    assert float(found[Space("ffn", 1)][5]) == pytest.approx(float(channel))
    q, k, v, o = (block.self_attn.get_submodule(f"{x}_proj").weight for x in "qkvo")
    rows, heads = slice(HEAD, 2 * HEAD), slice(2 * HEAD, 4 * HEAD)
    parts = [q[heads], k[rows], v[rows], o[:, heads]]
    group = torch.cat([part.flatten() for part in parts]).double().norm()
    assert float(found[Space("kv_groups", 1)][1]) == pytest.approx(float(group))
    module = load_module(folder_of("phi3")).requires_grad_(requires_grad=False)
    found = magnitudes(module, find_axes(module, read_widths(module)))
    mlp = decoder_blocks(module)[0].mlp
    fused, down = mlp.gate_up_proj.weight, mlp.down_proj.weight
    channel = torch.cat([fused[7], fused[FFN + 7], down[:, 7]]).double().norm()
    assert float(found[Space("ffn", 0)][7]) == pytest.approx(float(channel))


def test_magnitude_needs_no_text(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The recipe does not depend on the calibration text either."""
    _apply(folder_of("llama"), tmp_path / "out", ffn=64, score="magnitude")  # fails if it asks
    item = {"method": "width", "ffn": 64}
    (stage,) = parse_chain("chain", [{"restructure": item}]).stages
    assert stage.calibrates
    (stage,) = parse_chain("chain", [{"restructure": {**item, "score": "magnitude"}}]).stages
    assert not stage.calibrates


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox"])
def test_heads_that_are_tied_to_the_hidden_size_go_with_it(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each alone is refused with the number that the other must have; both together are done."""
    with pytest.raises(StageError, match="cannot be so wide") as refused:
        _apply(folder_of(name), tmp_path / "one", kv_groups=3)
    assert "3 heads: 48" in refused.value.remedy
    with pytest.raises(StageError, match="cannot be so wide"):
        _apply(folder_of(name), tmp_path / "two", hidden=32)
    _, module = _apply(folder_of(name), tmp_path / "three", kv_groups=3, hidden=48)
    assert module.config.num_attention_heads == 3
    assert module.config.hidden_size == 48
    assert torch.isfinite(_logits(module)).all()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gemma3", {"hidden": 48}, "root of the hidden size"),
        ("olmo2", {"kv_groups": 1}, "q_norm"),
        ("mixtral", {"ffn": 64}, "not known by their names"),
        ("bloom", {"ffn": 64}, "not known by their names"),
    ],
)
def test_what_an_architecture_does_not_allow_is_refused_by_name(
    name: str,
    fields: dict[str, Any],
    message: str,
    folder_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Nothing passes that would mean something else afterwards."""
    with pytest.raises(StageError, match=message) as refused:
        _apply(folder_of(name), tmp_path / "out", **fields)
    assert refused.value.remedy


def test_embeddings_of_another_width_stay_as_they_are(tmp_path: Path) -> None:
    """An OPT may project them to its hidden size, which then cannot be another."""
    folder = zoo.write_model(tmp_path / "model", "opt", word_embed_proj_dim=32)
    _, module = _apply(folder, tmp_path / "one", ffn=64)
    assert module.config.word_embed_proj_dim == 32
    with pytest.raises(StageError, match="project_"):
        _apply(folder, tmp_path / "two", kv_groups=3, hidden=48)


def test_a_parameter_that_was_forgotten_is_found(folder_of: Callable[[str], Path]) -> None:
    """What is left as wide as it was, transformers would not load: the twin of a wrong table."""
    module = load_module(folder_of("qwen2"))
    widths = read_widths(module)
    axes = dict(find_axes(module, widths))
    del axes["model.layers.1.self_attn.k_proj.bias"]
    config = narrowed_config(module.config, Widths(widths.ffn, 1, widths.hidden, 2, HEAD))
    kept = {Space("kv_groups", layer): torch.tensor([0]) for layer in range(2)}
    with pytest.raises(StageError, match=r"layers\.1\.self_attn\.k_proj\.bias"):
        narrow(module, axes, kept, config)


def test_transformers_own_rules_are_told(tmp_path: Path) -> None:
    """A Llama's hidden size must be divisible by its heads, though its heads are of any width."""
    folder = zoo.write_model(
        tmp_path / "model", "llama", num_attention_heads=8, num_key_value_heads=4
    )
    with pytest.raises(StageError, match="not a multiple of the number of attention heads") as no:
        _apply(folder, tmp_path / "out", kv_groups=3)
    assert "2 or 1" in no.value.remedy


@pytest.mark.parametrize(
    ("fields", "field", "told"),
    [
        ({"ffn": 0.99}, "ffn", "128"),
        ({"ffn": 0.01}, "ffn", "none would be left"),
        ({"ffn": 128}, "ffn", "128"),
        ({"kv_groups": 2}, "kv_groups", "none would be left out"),
        ({"hidden": 0.1, "round_to": 64}, "hidden", "64"),
    ],
)
def test_amounts_that_come_to_all_or_nothing_are_refused(
    fields: dict[str, Any],
    field: str,
    told: str,
    folder_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """With how many there are."""
    with pytest.raises(StageError, match=told) as refused:
        _apply(folder_of("llama"), tmp_path / "out", **fields)
    assert refused.value.path == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "ffn"),
        ({"ffn": 0}, "ffn"),
        ({"ffn": 100.5}, "ffn"),
        ({"ffn": 100}, "ffn"),
        ({"hidden": float("inf")}, "hidden"),
        ({"kv_groups": 1.5}, "kv_groups"),
        ({"ffn": 0.5, "round_to": 0}, "round_to"),
        ({"ffn": 0.5, "score": "taylor"}, "score"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(fields: dict[str, Any], field: str) -> None:
    """The plan names the field."""
    (error,) = parse_chain("chain", [{"restructure": {"method": "width", **fields}}]).errors
    assert error.path == f"chain[0].restructure.{field}"
    assert error.remedy


def test_depth_and_width_come_in_either_order(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """One after the other, each finds what the other left."""
    depth = {"restructure": {"method": "depth", "drop": [0]}}
    width = {"restructure": {"method": "width", "ffn": 64, "kv_groups": 1, "hidden": 32}}
    for place, items in enumerate([[depth, width], [width, depth]]):
        assert not parse_chain("chain", items).errors
        folder = folder_of("qwen3")
        for item in items:
            target = tmp_path / f"{place}-{next(iter(item.values()))['method']}"
            _, module = apply_stage(folder, target, item)
            folder = target
        config = module.config
        assert (config.num_hidden_layers, config.intermediate_size) == (1, 64)
        assert (config.num_key_value_heads, config.num_attention_heads) == (1, 2)
        assert (config.hidden_size, config.head_dim) == (32, HEAD)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_a_narrower_model_exports(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The first exporter's graph agrees with the module, whatever the heads come to."""
    groups = 3 if name == "gpt2" else 1
    target = tmp_path / "narrow"
    _apply(folder_of(name), target, ffn=96, kv_groups=groups, hidden=48)
    (tmp_path / "graph").mkdir()
    exported = export(target, tmp_path / "graph", progress=lambda *_: None)
    assert exported.record.exporter == "mobius"
    assert exported.graph.layers[0].heads == groups
    assert exported.graph.layers[0].key_dim == HEAD


@pytest.mark.slow
def test_the_demo_model_is_narrowed_and_quantized_in_one_chain(child: Child) -> None:
    """By the program as it is: smaller by what went, in blocks that divide what is left."""
    width = {"restructure": {"method": "width", "ffn": 0.75}}
    quantize = {"quantize": {"method": "weight_only", "block_size": 32}}
    plan = child.plan("demo", {"narrow": [width, quantize], "whole": [quantize]})
    manifests = {}
    for name, planned in plan.variants.items():
        event = child.build("demo", planned)[-1]
        assert isinstance(event, Built)
        manifests[name] = Store(child.store).manifest(event.artifact)
    narrow, whole = manifests["narrow"], manifests["whole"]
    assert [record.stage for record in narrow.lineage] == ["restructure", "export", "quantize"]
    assert narrow.lineage[0].notes == ("feed-forward channels 640 to 480",)
    assert narrow.export.exporter == "mobius"
    assert narrow.size_bytes < 0.95 * whole.size_bytes
    assert narrow.quality is not None
    assert narrow.quality.kl_mean < 0.2
