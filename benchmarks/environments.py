"""Environments of peers that cannot live in ours: set up once, found again afterwards.

Owns how packages get there. Knows nothing of what runs in them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.child import ChildError

_SET_UP_S = 1800
_CHECK_S = 300


def python_with(
    environment: Path, requirements: Path, check: str, *, without: Sequence[str] = ()
) -> Path:
    """The interpreter of an environment, which is made if it does not do.

    Args:
        environment: Its folder.
        requirements: What it holds, pinned.
        check: A statement that fails where a package is missing.
        without: Packages that others bring along and that are taken out again.

    Raises:
        ChildError: It cannot be set up.
    """
    python = environment / "bin" / "python"
    if not works(python, check):
        _set_up(environment, python, requirements, without)
    return python


def works(python: Path, check: str) -> bool:
    """Whether an interpreter is there and can do that."""
    if not python.exists():
        return False
    command = [str(python), "-c", check]
    checked = subprocess.run(command, check=False, capture_output=True, timeout=_CHECK_S)
    return checked.returncode == 0


def _set_up(environment: Path, python: Path, requirements: Path, without: Sequence[str]) -> None:
    """Install what the requirements pin; torch alone first, or its dependencies bring CUDA."""
    torch = [line for line in requirements.read_text().splitlines() if line.startswith("torch==")]
    index = os.environ.get("TORCH_INDEX_URL")
    pip = [str(python), "-m", "pip"]
    install = [*pip, "install", "--quiet"]
    first = [*install, "--no-deps", *(["--index-url", index] if index else [])]
    commands: list[list[str]] = [
        [sys.executable, "-m", "venv", str(environment)],
        *([*first, pinned] for pinned in torch),
        [*install, "-r", str(requirements)],
        *([*pip, "uninstall", "--quiet", "--yes", name] for name in without),
    ]
    for command in commands:
        if subprocess.run(command, check=False, timeout=_SET_UP_S).returncode:
            raise ChildError(
                f"{environment} cannot be set up: {' '.join(command)} failed; leave it out with "
                "--without."
            )
