"""What both ways of restructuring share: their place in a chain, and what should follow.

Owns that place. Knows nothing of what is left out and how it is chosen.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from optimizers.stage import Stage


class Restructuring(Stage):
    """Leaves out parts of the decoder, so that a smaller dense model of the same kind is left."""

    name: ClassVar[str] = "restructure"
    form: ClassVar[Literal["torch", "onnx"]] = "torch"
    rank: ClassVar[int] = 5
    reason: ClassVar[str] = "what is left out must not have been worked on before"
    mended_by: ClassVar[tuple[str, str] | None] = ("distill", "recover")
