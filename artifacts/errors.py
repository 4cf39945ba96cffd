"""Errors of this package: one base class with a stable code, a sentence and a remedy.

Knows nothing of gRPC status codes or exit codes; each face translates codes at its own border.
"""

from __future__ import annotations


class ArtifactError(Exception):
    """Something about an artifact, the store or a session that a user can act on.

    Attributes:
        code: Stable, lower-case identifier (``corrupt_artifact``, ``disk_full``, ...).
        remedy: What the user can do about it, one sentence; may be empty.
    """

    code = "artifact"

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        """The sentence and, when there is one, the remedy."""
        message = super().__str__()
        return f"{message} {self.remedy}".strip()


class CorruptArtifactError(ArtifactError):
    """A file of an artifact is missing, has the wrong size or the wrong digest."""

    code = "corrupt_artifact"


class FormatError(CorruptArtifactError):
    """An artifact is of another version's format: sound, and not to be read by this version."""

    code = "artifact_format"


class StoreError(ArtifactError):
    """The store cannot be read or written (full disk, permissions, not a store)."""

    code = "store"


class TextError(ArtifactError):
    """A file of texts cannot be used."""

    code = "text"


class SessionError(ArtifactError):
    """ONNX Runtime refused a model or failed in a step."""

    code = "session"


class StepTerminatedError(SessionError):
    """A step was ended on purpose, by ``terminate``."""

    code = "step_terminated"


class BugError(Exception):
    """A broken invariant: never the user's doing."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message} This is a bug.")
