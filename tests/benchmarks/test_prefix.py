"""How the bench of shared prefixes judges."""

from __future__ import annotations

import pytest

from benchmarks.prefix import ALIKE, BAR, COLD, WARM, Lengths, Turn, judged, ratio, turn_of
from server.comparison.streams import Stream

LENGTHS = Lengths(common=900, prompt=1_000)


def turns(ratio_: float, *, slowest: float = 1.0, cached: int = 900) -> list[Turn]:
    """Three rounds on a machine that drifts."""
    found = []
    for round_, drift in enumerate((1.0, 3.0, 0.5)):
        cold = tuple(drift * second for second in (1.0, 2.0, 3.0))
        warm = (cold[0] * ratio_, cold[1] * ratio_, cold[2] * ratio_ * slowest)
        found += [
            Turn(COLD, round_, cold, (0, 0, 0)),
            Turn(WARM, round_, warm, (900, 900, cached)),
            Turn(ALIKE, round_, cold, (0, 0, 0)),
        ]
    return found


@pytest.mark.parametrize(
    ("found", "met"),
    [
        (turns(0.12), [True, True, True, True]),
        (turns(0.2), [False, False, True, True]),
        (turns(0.12, slowest=2.0), [True, False, True, True]),
    ],
)
def test_median_and_slowest_stream_are_judged(found: list[Turn], met: list[bool]) -> None:
    """Each by the ratio to the cold turn of the same round."""
    assert [verdict for _, verdict in judged(found, LENGTHS)] == met
    median = ratio(found, WARM, "middle_s")
    assert median is not None
    assert median.low == pytest.approx(median.high)
    assert (median.median <= BAR) is met[0]


def test_a_prefix_that_was_computed_anew_is_no_warm_one() -> None:
    """Not even of one stream, however fast it was."""
    assert [met for _, met in judged(turns(0.12, cached=0), LENGTHS)] == [True, True, True, False]


def test_a_cold_prompt_that_was_reused_is_not_cold() -> None:
    """Or the ratio would say nothing."""
    found = [
        Turn(turn.kind, turn.round, turn.first_token_s, (16, 0, 0)) if turn.kind == COLD else turn
        for turn in turns(0.12)
    ]
    assert [met for _, met in judged(found, LENGTHS)] == [True, True, False, True]


def test_what_was_not_measured_meets_no_bar() -> None:
    """A run of cold turns alone proves nothing."""
    cold = [turn for turn in turns(0.1) if turn.kind == COLD]
    assert [met for _, met in judged(cold, LENGTHS)] == [False, False, True, False]
    assert not any(met for _, met in judged([], LENGTHS))


def test_a_turn_keeps_what_its_streams_say() -> None:
    """From when each was asked for."""
    streams = [
        Stream(1.0, ((1.5, 1), (2.0, 1)), (3, 4), 0),
        Stream(1.0, ((3.0, 1),), (3,), 900),
    ]
    assert turn_of(WARM, 2, streams) == Turn(WARM, 2, (0.5, 2.0), (0, 900))
