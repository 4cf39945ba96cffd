"""Stop strings in a growing text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.stops import StopMatcher

LETTERS = st.text(alphabet="abc", max_size=24)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow oracle: try every end, and at each end every stop, the longest first."""
    for end in range(1, len(text) + 1):
        for stop in sorted(set(stops), key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def cut(text: str, lengths: list[int]) -> list[str]:
    pieces = []
    for length in lengths:
        pieces.append(text[:length])
        text = text[length:]
    return [*pieces, text]


def feed(matcher: StopMatcher, pieces: list[str]) -> list[str]:
    return [*map(matcher.push, pieces), matcher.flush()]


@settings(max_examples=400)
@given(text=LETTERS, stops=STOPS, lengths=st.lists(st.integers(0, 5), max_size=10))
def test_text_before_the_first_stop_is_shown_however_it_is_cut(
    text: str, stops: list[str], lengths: list[int]
) -> None:
    """The result is the oracle's, whatever pieces the text came in."""
    matcher = StopMatcher(stops)
    shown = "".join(feed(matcher, cut(text, lengths)))
    assert expected(text, stops) == (shown, matcher.matched)


@settings(max_examples=400)
@given(text=LETTERS, stops=STOPS, lengths=st.lists(st.integers(0, 5), max_size=10))
def test_nothing_is_held_back_that_can_no_longer_be_a_stop(
    text: str, stops: list[str], lengths: list[int]
) -> None:
    """After each piece, what is held back is exactly the longest beginning of a stop."""
    matcher = StopMatcher(stops)
    fed = shown = ""
    for piece in cut(text, lengths):
        fed += piece
        shown += matcher.push(piece)
        if matcher.matched is not None:
            return
        beginnings = [stop[:size] for stop in stops for size in range(len(stop))]
        held = max((len(part) for part in beginnings if fed.endswith(part)), default=0)
        assert fed[: len(fed) - held] == shown


class Leaky(StopMatcher):
    """The planted fault: shows text at once and looks for stops only inside each piece."""

    def push(self, piece: str) -> str:
        shown = super().push(piece)
        return shown + self.flush() if self.matched is None else shown


def test_without_holding_back_a_partial_stop_leaks() -> None:
    """The twin of the properties above: they can fail."""
    pieces = ["say </", "stop", "> more"]
    sound, leaky = StopMatcher(["</stop>"]), Leaky(["</stop>"])
    assert "".join(feed(sound, pieces)) == "say "
    assert sound.matched == "</stop>"
    assert "".join(feed(leaky, pieces)) != "say "


def test_without_stops_text_passes_untouched() -> None:
    """No stop strings: the very same piece comes back."""
    piece = "anything"
    assert StopMatcher([]).push(piece) is piece


@pytest.mark.parametrize("stop", ["🎉", "東京", "\n\n", "e\N{COMBINING ACUTE ACCENT}"])
def test_stops_are_any_characters(stop: str) -> None:
    """Stops are found in any script, character by character."""
    matcher = StopMatcher([stop])
    assert "".join(feed(matcher, ["before", *stop, "after"])) == "before"
    assert stop == matcher.matched
