"""The exporter of last resort, with the real Optimum in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from artifacts.plain_session import PlainSession
from artifacts.session import Row
from benchmarks import zoo
from optimizers.errors import ExportError
from optimizers.export import chain, export, mobius_exporter, optimum_exporter, trace_exporter
from optimizers.export.decoder import read_decoder
from optimizers.export.optimum_exporter import OptimumError, _rope, _translated
from optimizers.export.plain import NotPlainError

NEW_TOKENS = 32


def refuse(*_: Any) -> None:
    """Stand for an exporter that cannot."""
    raise ValueError("not today")


@pytest.mark.optimum
@pytest.mark.parametrize("name", ["llama", "llama3_rope", "gpt2", "gemma3", "bloom", "stablelm"])
def test_optimum_serves_the_text_of_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What real Optimum writes is verified, opened and says what transformers says."""
    import torch

    from optimizers.export.reference import load_module

    python = os.environ["OPTIMUM_PYTHON"]
    folder = zoo.write_model(tmp_path / "model", name)
    for exporter, function in (
        (mobius_exporter, "export_packed"),
        (trace_exporter, "export"),
        (mobius_exporter, "export_plain"),
    ):
        monkeypatch.setattr(exporter, function, refuse)
    exported = export(
        folder, tmp_path / "out", progress=lambda *_: None, threads=1, optimum_python=python
    )
    assert exported.record.exporter == "optimum"
    assert len(exported.record.tried) == 3
    assert exported.graph.form == "plain"

    prompt = np.random.default_rng(7).integers(0, zoo.VOCABULARY, 40)
    module = load_module(folder)
    module.generation_config.eos_token_id = None
    ids = torch.from_numpy(prompt)[None]
    expected = module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
    )[0, len(prompt) :].tolist()

    session = PlainSession(exported.model, exported.graph, slots=1, max_length=128, threads=1)
    tokens, start, text = prompt.astype(np.int64), 0, []
    for _ in range(NEW_TOKENS):
        best = int(session.step([Row(0, start, tokens, 1)]).logits[0].argmax())
        start += len(tokens)
        tokens = np.array([best], np.int64)
        text.append(best)
    assert text == expected


def _interpreter(folder: Path, program: str) -> Path:
    """Write an interpreter whose Optimum is ``program``, the body of ``main_export``."""
    package = folder / "fake" / "optimum" / "exporters"
    package.mkdir(parents=True)
    (package / "onnx.py").write_text(f"def main_export(model, output, **_):\n    {program}\n")
    script = folder / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(folder / 'fake')!r})\n"
        "assert sys.argv.pop(1) == '-I'\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script.chmod(0o755)
    return script


def test_the_child_ends_when_the_optimizer_is_killed(
    zoo_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """It would work for nobody, up to an hour; what is unfinished lies in the export's folder."""
    note, out = tmp_path / "note", tmp_path / "out"
    python = _interpreter(
        tmp_path,
        "import os, pathlib, time; "
        f"pathlib.Path({str(note)!r} + '~').write_text(f'{{os.getpid()}} {{model}} {{output}}'); "
        f"os.rename({str(note)!r} + '~', {str(note)!r}); time.sleep(600)",
    )
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from optimizers.export.decoder import read_decoder\n"
        "from optimizers.export.optimum_exporter import export\n"
        "model, out, python = sys.argv[1:]\n"
        "export(read_decoder(Path(model)), Path(out), python)\n"
    )
    optimizer = subprocess.Popen(
        [sys.executable, "-c", program, str(zoo_folder("llama")), str(out), str(python)],
        cwd=Path(__file__).parents[3],
    )
    while not note.exists():
        assert optimizer.poll() is None
        time.sleep(0.05)
    pid, *folders = note.read_text().split()
    child = psutil.Process(int(pid))
    assert [Path(folder).parent for folder in folders] == [out, out]
    optimizer.kill()
    optimizer.wait()
    child.wait(timeout=30)


def test_an_export_leaves_nothing_but_its_result(
    zoo_folder: Callable[[str], Path], exported: Callable[[str], Any], tmp_path: Path
) -> None:
    """The folder is kept as it is: what was there while it was made must not be."""
    made = exported("llama").model
    python = _interpreter(
        tmp_path,
        f"import shutil; shutil.copytree({str(made.parent)!r}, output, dirs_exist_ok=True)",
    )
    with pytest.raises(NotPlainError):  # it is of the packed form
        optimum_exporter.export(read_decoder(zoo_folder("llama")), tmp_path / "out", str(python))
    assert list((tmp_path / "out").iterdir()) == []


def test_optimum_gets_the_models_own_weights_alone(tmp_path: Path) -> None:
    """Others in the folder are no part of the model."""
    folder = zoo.write_model(tmp_path / "model", "llama")
    (folder / "z_old.safetensors").write_bytes(b"")
    tmp_path.joinpath("out").mkdir()
    with _translated(read_decoder(folder), tmp_path / "out") as translated:
        names = {path.name for path in translated.iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_a_missing_interpreter_is_named(zoo_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """A wrong path in the config is an error that shows it."""
    decoder = read_decoder(zoo_folder("llama"))
    with pytest.raises(OptimumError, match="/nowhere/python"):
        optimum_exporter.export(decoder, tmp_path, "/nowhere/python")


def test_a_failing_child_gives_its_last_words(
    zoo_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """An interpreter without Optimum says so, in the error that lists all exporters."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'No module named optimum' >&2\nexit 1\n", encoding="utf-8")
    script.chmod(0o755)
    with pytest.raises(ExportError, match="optimum: OptimumError: No module named optimum"):
        export(
            zoo_folder("rwkv"),
            tmp_path / "out",
            progress=lambda *_: None,
            threads=1,
            optimum_python=str(script),
        )


def test_optimum_is_tried_only_when_its_interpreter_is_given() -> None:
    """Without the extra environment the chain has three attempts."""
    assert [attempt.label for attempt in chain._attempts(None)] == [
        "mobius",
        "trace",
        "mobius (plain form)",
    ]
    assert chain._attempts("python")[-1].label == "optimum"


def test_rotary_parameters_are_translated_for_transformers_4() -> None:
    """Frequencies lie under other names there, per layer type too."""
    assert _rope({"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.25}) == {
        "rope_theta": 5.0,
        "partial_rotary_factor": 0.25,
        "rotary_pct": 0.25,
    }
    assert _rope({"rope_type": "llama3", "rope_theta": 5.0, "factor": 8.0}) == {
        "rope_theta": 5.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    }
    by_kind = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert _rope(by_kind) == {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
