"""How a worker is spoken to: one JSON object per line on stdin, one answer per line on stdout.

A request names its operation in ``op``; the rest are that operation's arguments. ``quit`` or the
end of stdin ends the worker. An answer with ``error`` says that the operation failed. Knows nothing
of what the operations do, and needs the standard library only, so that it runs in any environment.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

Operation = Callable[..., dict[str, Any]]


def answer_requests(operations: Mapping[str, Operation]) -> None:
    """Carry out operations until there are no more requests."""
    # Libraries print; the answers get a descriptor of their own, and prints go to the log.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            name = request.pop("op")
            if name == "quit":
                return
            answers.write(json.dumps(_answer(operations[name], request)) + "\n")
            answers.flush()


def _answer(operation: Operation, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return operation(**arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the bench is told and decides
        traceback.print_exc(file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}"}
