"""``python -m optimizers plan | build | judge``: a request on standard input, its answer on output.

Owns reading the request and turning every failure into the protocol's words. Knows nothing of what
an answer is made of.
"""

from __future__ import annotations

import logging
import sys
import traceback

from pydantic import ValidationError

from artifacts.protocol import FieldError, PlanRequest, PlanResponse
from optimizers import events

_USAGE = "usage: python -m optimizers plan|build|judge < request.json\n"


def main(arguments: list[str]) -> int:
    """Run one command; the exit status is 0 when the answer says so too."""
    match arguments:
        case ["plan"]:
            return _plan()
        case ["build" | "judge" as act]:
            return _work(act)
        case _:
            sys.stderr.write(_USAGE)
            return 2


def _plan() -> int:
    protocol = events.take_stdout()
    response = _planned(sys.stdin.buffer.read())
    protocol.write(response.model_dump_json().encode() + b"\n")
    return 1 if response.errors else 0


def _planned(content: bytes) -> PlanResponse:
    from optimizers.plan import plan

    try:
        request = PlanRequest.model_validate_json(content)
    except ValidationError as error:
        return PlanResponse(
            errors=tuple(
                FieldError(path=".".join(map(str, one["loc"])), message=f"{one['msg']}.")
                for one in error.errors(include_url=False)
            )
        )
    try:
        return plan(request)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent must be told
        traceback.print_exc(file=sys.stderr)
        return PlanResponse(
            errors=(
                FieldError(
                    path="",
                    message=f"The config could not be judged: {type(error).__name__}: {error}.",
                    remedy="See the optimizer's log for the traceback, and please report it.",
                ),
            )
        )


def _work(act: str) -> int:
    protocol = events.take_stdout()
    line = sys.stdin.buffer.readline()
    events.exit_when_closed(sys.stdin.fileno())
    logging.basicConfig(level=logging.WARNING)  # before a library chooses for everybody
    if act == "judge":
        from optimizers.judge import run
    else:
        from optimizers.build import run
    return run(line, events.Events(protocol))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
