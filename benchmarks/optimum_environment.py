"""The environment of the peer that cannot live in ours: optimum needs transformers 4.

Owns finding it or setting it up, once. Knows nothing of what runs in it.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.child import ChildError
from benchmarks.environments import python_with, works

VARIABLE = "OPTIMUM_PYTHON"
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
        if not works(python, _CHECK):
            raise ChildError(
                f"{python} cannot import optimum.onnxruntime; install "
                f"tests/optimum-requirements.txt there, or leave {VARIABLE} away."
            )
        return python
    requirements = root / "tests" / "optimum-requirements.txt"
    try:
        return python_with(root / ".venv-optimum", requirements, _CHECK)
    except ChildError as error:
        raise ChildError(
            f"{error} Or give an interpreter with optimum-onnx in {VARIABLE}."
        ) from error
