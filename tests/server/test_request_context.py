"""A request's id: the caller's if it does no harm, else a new one; and where it is found."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest
import structlog

from server import logs
from server.engine.messages import Timings
from server.errors import Status
from server.observer import RequestRecord
from server.parameters import SamplingCall
from server.request_context import LONGEST_ID, NO_REQUEST, begin, begin_part, current, traced
from server.request_log import RequestLog


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def begun(offered: str | None) -> str:
    return copy_context().run(begin, offered).request_id


@pytest.mark.parametrize("offered", ["a", "req-1", "Root=1-67a:b/c+d_e.f", "x" * LONGEST_ID])
def test_a_sane_id_is_kept(offered: str) -> None:
    """What load balancers and tracing tools make comes back as it was."""
    assert begun(offered) == offered


@pytest.mark.parametrize(
    "offered", [None, "", "x" * (LONGEST_ID + 1), "two words", 'quo"te', "line\nbreak", "ü", "a\n"]
)
def test_another_is_made_for_any_other(offered: str | None) -> None:
    """Ids go into logs, headers and metrics; each made one is new."""
    made = {begun(offered) for _ in range(3)}
    assert len(made) == 3
    assert offered not in made
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in made)


async def test_tasks_of_a_request_carry_it_and_others_do_not() -> None:
    """A request's tasks inherit its id; a part of a stream has one of its own."""

    async def part(number: int) -> str:
        begin_part(number)
        await asyncio.sleep(0)
        return current().request_id

    async def request(name: str) -> list[str]:
        begin(name)
        parts = await asyncio.gather(*(asyncio.create_task(part(number)) for number in (1, 2)))
        return [*parts, current().request_id]

    both = await asyncio.gather(*(asyncio.create_task(request(name)) for name in "ab"))
    assert both == [["a/1", "a/2", "a"], ["b/1", "b/2", "b"]]
    assert current() is NO_REQUEST


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_every_line_of_a_request_has_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours and a library's, and the trace's id with it; other lines have neither."""
    logs.configure("info", "json")

    def request() -> None:
        begin("req-1")
        structlog.get_logger("server.x").info("ours")
        logging.getLogger("a.library").warning("theirs")
        traced("ab" * 16, None)
        structlog.get_logger("server.x").info("traced")

    copy_context().run(request)
    structlog.get_logger("server.x").info("of nobody")
    assert [(line.get("request_id"), line.get("trace_id")) for line in lines(capsys)] == [
        ("req-1", None),
        ("req-1", None),
        ("req-1", "ab" * 16),
        (None, None),
    ]


def test_the_line_of_a_request_has_figures_and_no_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also when it is written by whoever cleans up behind a caller that left."""
    logs.configure("info", "json")
    context = copy_context().run(begin, "req-1")
    record = RequestRecord(
        "int8",
        Status.OK,
        1.23456789,
        7,
        4,
        3,
        Timings(queue_s=0.1, prefill_s=0.2, decode_s=0.3),
        sampling=SamplingCall(stop=["a secret stop"], bad_words=["a secret word"]),
        first_token_s=0.4,
        context=context,
    )
    RequestLog().finished(record)
    RequestLog().finished(RequestRecord("", Status.NOT_FOUND, 0.01))
    whole, refused = lines(capsys)
    assert {key: value for key, value in whole.items() if key != "timestamp"} == {
        "level": "info",
        "event": "request",
        "request_id": "req-1",
        "operation": "text_completion",
        "variant": "int8",
        "status": "ok",
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "cached_tokens": 3,
        "duration_s": 1.234568,
        "first_token_s": 0.4,
        "queue_s": 0.1,
        "prefill_s": 0.2,
        "decode_s": 0.3,
    }
    assert "variant" not in refused
    assert refused["status"] == "not_found"
