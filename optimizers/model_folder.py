"""What a Hugging Face model folder must be to be used here: safetensors, and no code of its own.

Owns the list of files that are read, the checks, and the digest of a folder's content. Knows
nothing of where the folder came from.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from artifacts.digest import sha256_file, sha256_json, write_atomically
from artifacts.layout import Layout
from optimizers.errors import SourceError

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
CONFIGS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
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
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        for shard in sorted(set(_read(index).get("weight_map", {}).values())):
            if not is_allowed(str(shard)) or not (folder / str(shard)).is_file():
                raise SourceError(
                    f"{folder} lacks the weights file {shard!r} that its index names.",
                    path="model",
                    remedy="Fetch the model again.",
                )
    return Checked(
        architecture=str((config.get("architectures") or [config.get("model_type", "?")])[0]),
        license=_license(folder),
    )


def check_configs(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` and refuse models that need code of their own.

    Raises:
        SourceError: With what is wrong and what to do.
    """
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{folder} has no config.json.",
            path="model",
            remedy="Name a folder written by save_pretrained.",
        )
    config = _read(folder / "config.json")
    tokenizer = folder / "tokenizer_config.json"
    for path, content in (
        (folder / "config.json", config),
        (tokenizer, _read(tokenizer) if tokenizer.is_file() else {}),
    ):
        if content.get("auto_map"):
            raise SourceError(
                f"{path.name} of {folder.name} has auto_map: the model brings its own code, "
                "which is never run here.",
                path="model",
                remedy="Use a model of an architecture that transformers itself contains.",
            )
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown")
        raise SourceError(
            f"{folder.name} is already quantized ({method}).",
            path="model",
            remedy="Name the original model; quantize is a stage here.",
        )
    return config


def content_revision(folder: Path, layout: Layout) -> str:
    """Digest a folder's files, from a record by size and mtime where they have not changed.

    Returns:
        ``sha256:`` and 64 hex digits; the folder's place and name do not matter.
    """
    record = layout.sources / f"folder-{hashlib.sha256(bytes(folder)).hexdigest()}.json"
    try:
        known = json.loads(record.read_bytes())
    except (OSError, ValueError):  # no record yet: everything is hashed
        known = {}
    files: dict[str, list[Any]] = {}
    for path in sorted(folder.iterdir()):
        if not is_allowed(path.name) or not path.is_file():
            continue
        state = path.stat()
        stamp = [state.st_size, state.st_mtime_ns]
        old = known.get(path.name)
        digest = old[2] if old and old[:2] == stamp else sha256_file(path)
        files[path.name] = [*stamp, digest]
    if files != known and os.access(layout.sources, os.W_OK):
        write_atomically(record, json.dumps(files).encode(), scratch=layout.tmp)
    return "sha256:" + sha256_json({name: entry[2] for name, entry in files.items()})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path} is no JSON file: {error}.", path="model", remedy="Fetch the model again."
        ) from error
    if not isinstance(content, dict):
        raise SourceError(
            f"{path} is no JSON object.", path="model", remedy="Fetch the model again."
        )
    return content


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
