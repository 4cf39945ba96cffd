"""What a Hugging Face model folder must be to be used here: safetensors, and no code of its own.

Owns the list of files that are read, the checks, and the digest of a folder's content. Knows
nothing of where the folder came from. An ``OSError`` means that this user cannot read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from artifacts.digest import sha256_file, sha256_json, write_atomically
from artifacts.layout import Layout
from optimizers.errors import SourceError
from optimizers.generation_config import OWN, generation_defaults
from optimizers.json_file import read_object
from optimizers.weights_file import check_weights_file

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_SINGLE = "model.safetensors"
WEIGHTS = (_SINGLE, "model-*-of-*.safetensors")
CONFIGS = (
    CONFIG,
    OWN,
    INDEX,
    "tokenizer.json",
    _TOKENIZER_CONFIG,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
ALLOWED = (*WEIGHTS, *CONFIGS)
"""Every file that is ever read from a model folder or fetched from the hub."""
CHECKED = (CONFIG, OWN, _TOKENIZER_CONFIG)
"""The small files that tell whether a model is refused."""

_OF_TORCH = ("eager", "sdpa")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".h5", ".gguf", ".msgpack", ".ckpt", ".onnx", ".pkl")


@dataclass(frozen=True, slots=True)
class Checked:
    """What the check learned."""

    architecture: str
    license: str | None


def is_allowed(name: str) -> bool:
    """Whether a file (path inside its repository) is one that is read."""
    return any(fnmatchcase(name, pattern) for pattern in ALLOWED) and "/" not in name


def check_weights(names: list[str], model: str) -> None:
    """Refuse a listing without weights in the one format that is read.

    Raises:
        SourceError: No safetensors are among the names.
    """
    if any(fnmatchcase(name, pattern) for name in names for pattern in WEIGHTS):
        return
    others = sorted(name for name in names if name.endswith((*_OTHER_WEIGHTS, ".safetensors")))
    found = f"; it has {', '.join(others[:3])}" if others else ""
    raise SourceError(
        f"{model} has no model.safetensors{found}.",
        path="model",
        remedy="Only weights in safetensors are read, since other formats can run code when "
        "loaded: convert the model with save_pretrained and name the result.",
    )


def check_folder(folder: Path) -> Checked:
    """Refuse a folder that lacks something, brings code, or hides its weights.

    Raises:
        SourceError: With what is wrong and what to do.
    """
    config = check_configs(folder)
    check_weights([path.name for path in folder.iterdir() if path.is_file()], str(folder))
    for path in weights_files(folder):
        check_weights_file(path)
    return Checked(
        architecture=str((config.get("architectures") or [config.get("model_type", "?")])[0]),
        license=_license(folder),
    )


def weights_files(folder: Path) -> list[Path]:
    """List the files that are a model's weights: the single one, else the shards of its index.

    Others that lie beside them, such as an older state, are no part of the model.

    Raises:
        SourceError: There are none, or the index names a file that is missing or elsewhere.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = folder / INDEX
    if not index.is_file():
        raise SourceError(
            f"{folder} has neither {_SINGLE} nor {INDEX}.",
            path="model",
            remedy="Fetch the model again.",
        )
    places = read_object(index).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise SourceError(
            f"weight_map of {index} does not map tensors to files.",
            path="model",
            remedy="Fetch the model again.",
        )
    shards = sorted(set(names))
    for shard in shards:
        if not is_allowed(shard) or not (folder / shard).is_file():
            raise SourceError(
                f"{folder} lacks the weights file {shard!r} that its index names.",
                path="model",
                remedy="Fetch the model again.",
            )
    return [folder / shard for shard in shards]


def check_configs(folder: Path) -> dict[str, Any]:
    """Read the configs, refuse models that need code of their own, and give ``config.json``.

    Raises:
        SourceError: With what is wrong and what to do.
    """
    if not (folder / CONFIG).is_file():
        raise SourceError(
            f"{folder} has no {CONFIG}.",
            path="model",
            remedy="Name a folder written by save_pretrained.",
        )
    for name in CHECKED:
        if (folder / name).is_file() and read_object(folder / name).get("auto_map"):
            raise SourceError(
                f"{name} of {folder.name} has auto_map: the model brings its own code, "
                "which is never run here.",
                path="model",
                remedy="Use a model of an architecture that transformers itself contains.",
            )
    config = read_object(folder / CONFIG)
    for key, value in _implementations(config):
        # An id of the hub; and the private form overrides what transformers' caller asks for.
        if "/" in value or (key.startswith("_") and value not in _OF_TORCH):
            raise SourceError(
                f"{CONFIG} of {folder.name} has {key} {value!r}, which may be native code of the "
                "hub: that is never run here.",
                path="model",
                remedy=f"Remove {key} from a copy of the model; its results do not depend on it.",
            )
    if config.get("transformers_weights") is not None:
        raise SourceError(
            f"{CONFIG} of {folder.name} has transformers_weights, which names other weights than "
            f"{_SINGLE}.",
            path="model",
            remedy="Write the model with save_pretrained and name the result.",
        )
    if quantization := config.get("quantization_config"):
        known = isinstance(quantization, dict)
        method = quantization.get("quant_method", "unknown") if known else "unknown"
        raise SourceError(
            f"{folder.name} is already quantized ({method}).",
            path="model",
            remedy="Name the original model; quantize is a stage here.",
        )
    if not isinstance(config.get("architectures") or [], list):
        raise SourceError(
            f"architectures of {folder / CONFIG} is no list of names.",
            path="model",
            remedy="Fetch the model again.",
        )
    generation_defaults(folder)  # they are needed last, when a mistake would cost the whole build
    return config


def _implementations(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Give every text below a key that chooses how transformers computes something."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _implementations(value, name if name.endswith("_implementation") else key)
    elif isinstance(content, list):
        for value in content:
            yield from _implementations(value, key)
    elif key and isinstance(content, str):
        yield key, content


def content_revision(folder: Path, layout: Layout | None) -> str:
    """Digest a folder's files, from a record by size and mtime where they have not changed.

    Args:
        folder: A model folder.
        layout: The store that keeps the record; None = everything is hashed.

    Returns:
        ``sha256:`` and 64 hex digits; the folder's place and name do not matter.
    """
    known = {} if layout is None else _known(_record(folder, layout))
    files: dict[str, list[Any]] = {}
    for path in sorted(folder.iterdir()):
        if not is_allowed(path.name) or not path.is_file():
            continue
        state = path.stat()
        stamp = [state.st_size, state.st_mtime_ns]
        old = known.get(path.name)
        digest = old[2] if old and old[:2] == stamp else sha256_file(path)
        files[path.name] = [*stamp, digest]
    if files != known and layout is not None:
        # The record only saves the next start a hash: a full or read-only disk must not stop this.
        with contextlib.suppress(OSError):
            content = json.dumps(files).encode()
            write_atomically(_record(folder, layout), content, scratch=layout.tmp)
    return "sha256:" + sha256_json({name: entry[2] for name, entry in files.items()})


def _record(folder: Path, layout: Layout) -> Path:
    return layout.sources / f"folder-{hashlib.sha256(bytes(folder)).hexdigest()}.json"


def _known(record: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(record.read_bytes())
    except (OSError, ValueError):  # no record yet: everything is hashed
        return {}
    return known if isinstance(known, dict) else {}


def _license(folder: Path) -> str | None:
    """The license of the model card's front matter, where there is a card."""
    try:
        with (folder / "README.md").open(encoding="utf-8") as card:
            if card.readline().strip() != "---":
                return None
            for _, line in zip(range(100), card, strict=False):
                if line.strip() == "---":
                    return None
                key, _, value = line.partition(":")
                if key.strip() == "license":
                    return value.strip().strip("'\"") or None
    except (OSError, UnicodeDecodeError):  # no card: the license stays unknown
        return None
    return None
