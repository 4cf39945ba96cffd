"""Becomes llama.cpp's server, once the file that it serves is there.

Run in llama.cpp's environment: ``python -m benchmarks.workers.llama_server SOURCE PROGRAMS MODEL
FILE RUNG COMMAND...``. What it makes of a model counts as part of the start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def main(source: str, programs: str, model: str, target: str, rung: str, *command: str) -> None:
    """Make ``target`` of a model's folder unless it is there, then run the command instead."""
    if not Path(target).exists():
        whole = Path(target).with_suffix(f".{os.getpid()}.f32.gguf")
        draft = Path(target).with_suffix(f".{os.getpid()}.draft.gguf")
        whole.parent.mkdir(parents=True, exist_ok=True)
        convert = [sys.executable, "-m", "benchmarks.workers.gguf", source, model, str(whole)]
        quantize = [str(Path(programs, "llama-quantize")), str(whole), str(draft), rung]
        for each in (convert, quantize):
            subprocess.run(each, check=True, stdout=sys.stderr)
        whole.unlink()
        draft.rename(target)
    os.dup2(2, 1)
    os.execv(command[0], command)  # noqa: S606 - the server is what was asked for


if __name__ == "__main__":
    main(*sys.argv[1:])
