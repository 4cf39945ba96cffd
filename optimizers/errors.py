"""Errors of the optimizer: one base class with a stable code, a path and a remedy.

Knows nothing of how they reach the user; ``optimizers.build`` writes them as the last event.
"""

from __future__ import annotations


class OptimizerError(Exception):
    """Something about a model, a chain or a build that a user can act on.

    Attributes:
        code: Stable, lower-case identifier.
        path: The config field at fault, for example ``variants.int8.chain[0].prune``; may be empty.
        remedy: What the user can do about it, one sentence; may be empty.
    """

    code = "optimizer"

    def __init__(self, message: str, *, path: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.remedy = remedy


class SourceError(OptimizerError):
    """A model cannot be found, read or trusted."""

    code = "source"


class StageError(OptimizerError):
    """A stage cannot run on this model, or its result is not what it promises."""

    code = "stage"


class TextUseError(OptimizerError):
    """A text cannot be used for what it was given for."""

    code = "text_use"


class RecipeChangedError(OptimizerError):
    """What is to be built is no longer what was planned."""

    code = "recipe_changed"


class NotEquippedError(OptimizerError):
    """What the work needs is not installed here."""

    code = "not_equipped"


class RequestError(OptimizerError):
    """The request on standard input cannot be read."""

    code = "request"


class MemoryLimitError(OptimizerError):
    """A build would need more memory than there is."""

    code = "out_of_memory"


class ExportError(OptimizerError):
    """No exporter could turn the model into a graph that agrees with its torch module."""

    code = "export"
