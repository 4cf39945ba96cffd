"""Whether what building and measuring need is installed; serving and planning do without it.

Looked for before any work, so that an installation for serving says what it lacks and what to do.
Imports nothing of it.
"""

from __future__ import annotations

from importlib.util import find_spec

from optimizers.errors import NotEquippedError

_NEEDED = ("torch", "transformers", "onnx")


def is_equipped() -> bool:
    """Whether variants can be built and measured here."""
    return not _missing()


def check_equipment(wanted: str) -> None:
    """Refuse work that cannot be done here.

    Args:
        wanted: What is missing without it, as the beginning of a sentence.

    Raises:
        NotEquippedError: A library is not installed.
    """
    if missing := _missing():
        raise NotEquippedError(
            f"{wanted}, and this installation only serves: it has no {' and no '.join(missing)}.",
            remedy="Run `inference-unlimited build CONFIG` on this store where the optimizer is: "
            'in the image `full`, or after pip install "inference-unlimited[optimizer]".',
        )


def _missing() -> list[str]:
    return [name for name in _NEEDED if find_spec(name) is None]
