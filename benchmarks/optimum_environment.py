"""The environment of the peer that cannot live in ours: optimum needs transformers 4.

Owns finding it or setting it up, once. Knows nothing of what runs in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.child import ChildError

VARIABLE = "OPTIMUM_PYTHON"
_SET_UP_S = 1800
_CHECK_S = 300
_CHECK = "from optimum.onnxruntime import ORTModelForCausalLM"


def optimum_python(root: Path, given: str | None) -> Path:
    """The interpreter that holds optimum-onnx.

    Args:
        root: The repository; ``.venv-optimum`` lies in it and is set up when it is missing.
        given: An interpreter to use instead.

    Raises:
        ChildError: The interpreter has no optimum, or the environment cannot be set up.
    """
    if given is not None:
        python = Path(given).absolute()
        if not _works(python):
            raise ChildError(
                f"{python} cannot import optimum.onnxruntime; install "
                f"tests/optimum-requirements.txt there, or leave {VARIABLE} away."
            )
        return python
    environment = root / ".venv-optimum"
    python = environment / "bin" / "python"
    if not _works(python):
        _set_up(environment, python, root / "tests" / "optimum-requirements.txt")
    return python


def _works(python: Path) -> bool:
    if not python.exists():
        return False
    command = [str(python), "-c", _CHECK]
    check = subprocess.run(command, check=False, capture_output=True, timeout=_CHECK_S)
    return check.returncode == 0


def _set_up(environment: Path, python: Path, requirements: Path) -> None:
    """Install what the requirements pin; torch alone first, or its dependencies bring CUDA."""
    torch = next(
        line for line in requirements.read_text().splitlines() if line.startswith("torch==")
    )
    index = os.environ.get("TORCH_INDEX_URL")
    install = [str(python), "-m", "pip", "install", "--quiet"]
    commands: tuple[list[str], ...] = (
        [sys.executable, "-m", "venv", str(environment)],
        [*install, "--no-deps", *(["--index-url", index] if index else []), torch],
        [*install, "-r", str(requirements)],
    )
    for command in commands:
        if subprocess.run(command, check=False, timeout=_SET_UP_S).returncode:
            raise ChildError(
                f"{environment} cannot be set up: {' '.join(command)} failed. Give an "
                f"interpreter with optimum-onnx in {VARIABLE}, or leave it out: --without optimum."
            )
