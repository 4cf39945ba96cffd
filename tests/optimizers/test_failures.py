"""What a failed build tells."""

from __future__ import annotations

import errno

import pytest

from artifacts.errors import StoreError
from optimizers.errors import StageError
from optimizers.failures import failure


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StageError("no", path="p", remedy="r"), "stage"),
        (StoreError("no", remedy="r"), "store"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (ZeroDivisionError("division by zero"), "internal"),
    ],
)
def test_every_exception_has_a_code_and_a_remedy(error: Exception, code: str) -> None:
    """The parent never has to guess."""
    told = failure(error)
    assert told.code == code
    assert told.message
    assert told.remedy
