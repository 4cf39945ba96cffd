"""One request in, exactly one final event out, whatever happens in between.

Owns reading the request and telling every failure. Knows nothing of what is asked for.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError

from artifacts.protocol import BuildRequest, Built, Judged, JudgeRequest
from optimizers.errors import RequestError
from optimizers.events import Events
from optimizers.failures import failure

R = TypeVar("R", BuildRequest, JudgeRequest)


def answer(line: bytes, kind: type[R], work: Callable[[R], Built | Judged], events: Events) -> int:
    """Read a request, do the work and send how it ended; gives the exit status."""
    try:
        try:
            request = kind.model_validate_json(line)
        except ValidationError as error:
            raise RequestError(
                f"The request cannot be read: {error.errors()[0]['msg']}."
            ) from error
        if request.threads is not None:
            # What torch starts with; importing torch to tell it so would cost seconds.
            os.environ["OMP_NUM_THREADS"] = str(request.threads)
        final = work(request)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent must be told
        traceback.print_exc(file=sys.stderr)
        events.send(failure(error))
        return 1
    events.send(final)
    return 0
