"""Fixtures over planted figures."""

from __future__ import annotations

import pytest

from server.comparison.report import Report
from tests.server.comparison.planted import MakeSubject, make_subject, planted_report


@pytest.fixture
def subject() -> MakeSubject:
    """Make variants; what is not said is as the baseline has it."""
    return make_subject


@pytest.fixture
def report() -> Report:
    """A baseline and two variants, one fast and lossy, one that changes nothing."""
    return planted_report()
