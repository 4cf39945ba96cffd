"""The last exporter: Optimum, in an environment of its own, as a child process.

Owns the child and the translation of the folder's config into the words of transformers 4, which
Optimum stands on. Knows nothing of Optimum's modules.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizers.export import optimum_child
from optimizers.export.graph_file import MODEL_FILE, save
from optimizers.export.plain import plain_spec
from optimizers.model_folder import INDEX, weights_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from artifacts.manifest import GraphSpec
    from optimizers.export.decoder import Decoder

_LIMIT_S = 3_600
_SAID = 2_000  # characters of the child's last words


class OptimumError(Exception):
    """Optimum's interpreter is missing or its export failed; the message holds its last words."""


def export(decoder: Decoder, out: Path, python: str) -> GraphSpec:
    """Write ``out/model.onnx`` in the plain form with the interpreter ``python``.

    Raises:
        OptimumError: The child cannot be started, takes too long or fails.
        NotPlainError: What it wrote is not of the plain form.
    """
    import onnx_ir as ir

    out.mkdir(parents=True, exist_ok=True)
    # What is not finished lies inside ``out``, so that it goes with it if this process is killed.
    made_in = tempfile.TemporaryDirectory(prefix="optimum-", dir=out)
    with _translated(decoder, out) as folder, made_in as made:
        _run(python, folder, Path(made))
        model = ir.load(Path(made) / MODEL_FILE)
        graph = plain_spec(model, decoder)
        save(model, out)
    return graph


def _run(python: str, folder: Path, out: Path) -> None:
    """Have the child export; it ends with this process, whose end of a pipe it watches."""
    command = [python, "-I", str(Path(optimum_child.__file__)), str(folder), str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=reading,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OptimumError(f"{python} cannot be used: {error}") from error
    finally:
        os.close(reading)
        os.close(writing)
    if done.returncode != 0:
        lines = [line for line in done.stderr[-_SAID:].splitlines() if line.strip()]
        raise OptimumError(lines[-1] if lines else f"exit status {done.returncode}")


@contextmanager
def _translated(decoder: Decoder, out: Path) -> Iterator[Path]:
    """Give a copy of the folder, inside ``out``, with the config of transformers 4.

    Weights are links.
    """
    config: dict[str, Any] = json.loads((decoder.folder / "config.json").read_text("utf-8"))
    parameters = config.pop("rope_parameters", None)
    if parameters:
        config.update(_rope(parameters))
    with tempfile.TemporaryDirectory(prefix="model-", dir=out) as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        index = decoder.folder / INDEX
        for file in (*weights_files(decoder.folder), *([index] if index.is_file() else [])):
            (folder / file.name).symlink_to(file.resolve())
        yield folder


def _rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """Translate ``rope_parameters`` of transformers 5 into the fields of transformers 4."""
    full = parameters.get("full_attention", parameters)
    local = parameters.get("sliding_attention")
    scaling = {key: value for key, value in full.items() if key != "rope_theta"}
    fields: dict[str, Any] = {"rope_theta": full.get("rope_theta", 10_000.0)}
    if "partial_rotary_factor" in scaling:
        fields["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
        fields["rotary_pct"] = fields["partial_rotary_factor"]  # the name that GPT-NeoX uses
    if local:
        fields["rope_local_base_freq"] = local["rope_theta"]
    if scaling.get("rope_type", "default") != "default":
        fields["rope_scaling"] = scaling
    return fields
