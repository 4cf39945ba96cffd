"""What an export must know about a model before any graph exists, read from its folder.

Owns the reading of the Hugging Face config: architecture, attention window of every layer, longest
sequence. The tables of the rotary embedding and the epsilon of the norms come from transformers'
own modules, built without weights. Knows nothing of ONNX.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizers.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LONGEST = 32_768  # rows of the rotary tables: 16 MiB at a head of 128
ALIBI_LENGTH = 2_048  # ALiBi has no end of its own; what such models were trained on
SLIDING = "sliding_attention"
_KNOWN_LAYERS = ("full_attention", SLIDING)
# Local attention under other names: read by no exporter, so a graph would silently be without it.
_OTHER_WINDOWS = ("attention_window", "attention_window_size", "local_attention", "window_size")
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Cosines and sines of every position: (max_length, rotary_dim / 2) float32 each."""

    cos: NDArray[np.float32]
    sin: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A causal language model's folder and what its config says.

    Attributes:
        folder: The Hugging Face folder.
        config: Its transformers config.
        architecture: Class name, such as ``LlamaForCausalLM``.
        windows: Per layer, how many tokens attention sees; None = all of them.
        max_length: The longest sequence that the model, and our tables, can express.
        vocab_size: Width of its logits.
    """

    folder: Path
    config: Any
    architecture: str
    windows: tuple[int | None, ...]
    max_length: int
    vocab_size: int

    @property
    def layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.windows)


def read_decoder(folder: Path) -> Decoder:
    """Read a model's folder.

    Raises:
        ExportError: It is not a causal language model that transformers knows.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    raw = _raw_config(folder)
    names = raw.get("architectures") or ["(none named)"]
    architecture = str(names[0])
    model_type = str(raw.get("model_type", ""))
    if not architecture.endswith(_CAUSAL_SUFFIXES):
        raise refusal(architecture, ["it is not a causal language model"])
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise refusal(architecture, [f"transformers knows no causal model type {model_type!r}"])
    if raw.get("quantization_config"):
        raise refusal(architecture, ["its weights are quantized already; name the original"])
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if hasattr(config, "text_config"):
        raise refusal(architecture, ["it is multimodal; only text decoders are served"])
    return Decoder(
        folder=folder,
        config=config,
        architecture=architecture,
        windows=_windows(config, architecture),
        max_length=_max_length(config),
        vocab_size=int(config.vocab_size),
    )


def refusal(architecture: str, reasons: list[str]) -> ExportError:
    """Make the error that names an architecture, the reasons, and what would work."""
    from optimizers.export.architectures import SUPPORTED

    return ExportError(
        f"The architecture {architecture} cannot be exported: {'; '.join(reasons)}.",
        path="model",
        remedy=f"Supported and verified: {', '.join(SUPPORTED)}.",
    )


def empty_module(config: Any) -> Any:
    """Build transformers' module of a config without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", trust_remote_code=False
        )


def norm_epsilon(module: Any) -> float | None:
    """Return the epsilon that all layer norms of a module share, or None."""
    import torch

    found = {norm.eps for norm in module.modules() if isinstance(norm, torch.nn.LayerNorm)}
    return float(found.pop()) if len(found) == 1 else None


def embedding_scale(module: Any) -> float | None:
    """Return what a module multiplies its token embeddings with, or None."""
    scale = getattr(module.get_input_embeddings(), "scalar_embed_scale", None)
    return None if scale is None else float(scale)


def rotary_tables(decoder: Decoder, module: Any) -> tuple[RotaryTable, ...] | None:
    """Compute each layer's rotary table from transformers' own frequencies.

    Layers of one kind share one table. None when the model has no rotary embedding of the usual
    form.
    """
    rotary_class = next(
        (type(part) for name, part in module.named_modules() if name.endswith("rotary_emb")), None
    )
    if rotary_class is None:
        return None
    rotary = rotary_class(config=decoder.config)
    kinds = getattr(decoder.config, "layer_types", None) or ["full_attention"] * decoder.layers
    tables: dict[str, RotaryTable] = {}
    for kind in kinds:
        if kind not in tables:
            prefix = f"{kind}_" if hasattr(rotary, f"{kind}_inv_freq") else ""
            if not hasattr(rotary, f"{prefix}inv_freq"):
                return None
            frequencies = getattr(rotary, f"{prefix}inv_freq").numpy()
            scaling = float(getattr(rotary, f"{prefix}attention_scaling", 1.0))
            tables[kind] = _table(frequencies, scaling, decoder.max_length)
    return tuple(tables[kind] for kind in kinds)


def _table(frequencies: NDArray[np.float32], scaling: float, length: int) -> RotaryTable:
    angles = np.outer(np.arange(length, dtype=np.float32), frequencies.astype(np.float32))
    return RotaryTable(
        cos=(np.cos(angles) * np.float32(scaling)).astype(np.float32),
        sin=(np.sin(angles) * np.float32(scaling)).astype(np.float32),
    )


def _raw_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path.name} cannot be read: {error}",
            path="model",
            remedy="Name a folder in the Hugging Face layout.",
        ) from error
    if not isinstance(raw, dict):
        raise ExportError(f"{path.name} is not an object.", path="model")
    if raw.get("auto_map"):
        raise ExportError(
            "The model brings its own code (auto_map), which is never run.",
            path="model",
            remedy="Choose a model that transformers supports by itself.",
        )
    return raw


def _windows(config: Any, architecture: str) -> tuple[int | None, ...]:
    for name in _OTHER_WINDOWS:
        if getattr(config, name, None):
            raise refusal(architecture, [f"its local attention ({name}) is not supported"])
    layers = int(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return (window,) * layers
    unknown = sorted(set(kinds) - set(_KNOWN_LAYERS))
    if unknown:
        raise refusal(architecture, [f"its layers of type {', '.join(unknown)} are not supported"])
    return tuple(window if kind == SLIDING else None for kind in kinds)


def _max_length(config: Any) -> int:
    """Return the longest sequence for which the positions of the graph are right."""
    length = getattr(config, "max_position_embeddings", None)
    if not length:
        return ALIBI_LENGTH
    parameters = getattr(config, "rope_parameters", None) or {}
    # Beyond the original length this kind swaps its frequencies for all positions at once, which
    # a cache of rotated keys cannot follow.
    if parameters.get("rope_type") == "longrope":
        original = parameters.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        length = min(length, original or length)
    return min(int(length), LONGEST)
