"""The two kinds of digest of a build: the recipe, and the keys of intermediate results.

A recipe says what is to be made and holds no library versions, so that an upgrade orphans nothing;
a key says how one intermediate result was made, and does. Knows nothing of stages but their
identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from artifacts.digest import sha256_json
from optimizers.stage import Stage

RECIPE_FORMAT = 1
EXPORT_VERSION = 2
"""Raised whenever the export of the same model would give another graph."""

_LIBRARIES = {
    "torch": ("torch", "transformers", "safetensors"),
    "export": (
        "torch",
        "transformers",
        "safetensors",
        "mobius-onnx",
        "onnx",
        "onnx-ir",
        "onnxscript",
        "onnxruntime",  # an export is kept because it was seen to run rightly in this one
    ),
    "training": ("accelerate", "peft"),
    "onnx": ("onnx", "onnx-ir", "onnxruntime", "numpy"),
}
RECORDED = tuple(sorted({name for names in _LIBRARIES.values() for name in names}))


def recipe_digest(revision: str, chain: Sequence[Stage], calibration: str) -> str:
    """Name what is built: from which content, by which stages, calibrated on which text.

    ``calibration`` is the text's digest; it counts only where a stage reads it.
    """
    return sha256_json(
        {
            "format": RECIPE_FORMAT,
            "model": revision,
            "export": EXPORT_VERSION,
            "chain": [_identity(stage) for stage in chain],
            "calibration": calibration if any(stage.calibrates for stage in chain) else None,
        }
    )


def source_key(revision: str) -> str:
    """The key that a chain of intermediate results begins with."""
    return sha256_json({"source": revision})


def stage_key(parent: str, stage: Stage, calibration: str) -> str:
    """The key of a stage's result on top of another result."""
    return sha256_json(
        {
            "parent": parent,
            "stage": _identity(stage),
            "calibration": calibration if stage.calibrates else None,
            "libraries": libraries(stage.form) | (libraries("training") if stage.trains else {}),
        }
    )


def export_key(parent: str) -> str:
    """The key of the export of a torch-form result."""
    return sha256_json(
        {"parent": parent, "export": EXPORT_VERSION, "libraries": libraries("export")}
    )


def libraries(form: str | None = None) -> dict[str, str]:
    """The installed versions of what a form's results depend on (None: of all forms)."""
    names = RECORDED if form is None else _LIBRARIES[form]
    return {name: found for name in names if (found := _version(name)) is not None}


def _identity(stage: Stage) -> dict[str, Any]:
    return {"name": stage.name, "version": stage.version, "fields": stage.identity()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
