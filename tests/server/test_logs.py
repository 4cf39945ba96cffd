"""Logs: one object per line for machines, whoever wrote the line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from server import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_our_events_and_libraries_lines_share_one_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A collector parses every line the same way."""
    logs.configure("info", "json")
    structlog.get_logger("server.x").info("variant ready", variant="int8", empty=None)
    logging.getLogger("a.library").warning("said %s", "this")
    structlog.get_logger("server.x").debug("not this")
    ours, theirs = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert list(ours) == ["timestamp", "level", "event", "variant"]
    assert (ours["event"], ours["variant"]) == ("variant ready", "int8")
    assert (theirs["event"], theirs["level"]) == ("said this", "warning")


def test_an_exception_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback must not fall apart into many records."""
    logs.configure("info", "json")
    try:
        int("broken")
    except ValueError:
        structlog.get_logger("server.x").exception("unexpected")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_the_console_form_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Event first, then its fields."""
    logs.configure("info", "console")
    structlog.get_logger("server.x").info("variant ready", variant="int8")
    line = capsys.readouterr().err
    assert "variant ready" in line
    assert "variant=int8" in line


def test_an_answer_that_nobody_waits_for_any_more_is_no_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What gRPC logs of its race with a cancel is left out; its other errors stay."""

    class ExecuteBatchError(Exception):
        pass

    logs.configure("info", "json")
    library = logging.getLogger("grpc._cython.cygrpc")
    for error in (ExecuteBatchError(), ValueError()):
        library.error("raised", exc_info=error)
    assert "ValueError" in json.loads(capsys.readouterr().err)["exception"]
