"""From any exception to the one event that ends a failed build.

Owns the codes of failures that are nobody's own class (memory, disk, interruption). Knows nothing
of what was being built.
"""

from __future__ import annotations

import errno

from artifacts.errors import ArtifactError
from artifacts.protocol import BuildFailed
from optimizers.errors import OptimizerError

_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "bad_alloc", "std::bad_alloc")
_DISK_WORDS = (
    "No space left on device",
    "os error 28",
    "Disk quota exceeded",
    "File too large",
    "os error 27",
    # numpy's, which come without a number
    "problem writing element",
    "requested and 0 written",
)
_LONGEST = 600


def failure(error: BaseException) -> BuildFailed:
    """Tell an exception with code, sentence, path and remedy."""
    text = f"{type(error).__name__}: {error}".strip()[:_LONGEST]
    match error:
        case OptimizerError():
            return BuildFailed(
                code=error.code, message=str(error.args[0]), path=error.path, remedy=error.remedy
            )
        case ArtifactError():
            return BuildFailed(code=error.code, message=str(error.args[0]), remedy=error.remedy)
        case _ if _lacks_memory(error):
            return BuildFailed(
                code="out_of_memory",
                message=f"The build ran out of memory ({text}).",
                remedy="Build on a machine with more memory, or choose a smaller model.",
            )
        case _ if _is_full(error):
            return BuildFailed(
                code="disk_full",
                message=f"A disk is full ({text}).",
                remedy="Free space or run prune-store, then start again; finished stages are kept.",
            )
        case _:
            return BuildFailed(
                code="internal",
                message=text,
                remedy="See the optimizer's log for the traceback, and please report it.",
            )


def is_exhausted(error: BaseException) -> bool:
    """Whether memory or disk ran out: trying another way would only fail the same."""
    return _lacks_memory(error) or _is_full(error)


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error) for word in _MEMORY_WORDS)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return True
    return any(word in str(error) for word in _DISK_WORDS)
