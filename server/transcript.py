"""What one request has said so far: token ids into text, up to a stop string.

Owns which tokens count and which text may be shown. Knows nothing of queues, engines or gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence

from artifacts.detokenizer import Detokenizer
from server.engine.messages import Token
from server.stops import StopMatcher


class Transcript:
    """Text of one request, piece by piece.

    Text of the first ``min_tokens`` tokens is shown at once and is never part of a stop.
    """

    __slots__ = ("_detokenizer", "_include_stop", "_min_tokens", "_stops", "completion_tokens")

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: Sequence[str],
        *,
        min_tokens: int,
        include_stop: bool = False,
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = StopMatcher(stops)
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self.completion_tokens = 0

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one has."""
        return self._stops.matched

    def push(
        self, tokens: Sequence[Token], *, silent_last: bool = False
    ) -> tuple[str, Sequence[Token]]:
        """Take one step's tokens.

        Args:
            tokens: In order.
            silent_last: The last one is the stop token that ended the request: it counts, but is
                not text.

        Returns:
            The text that may be shown, and the tokens that count: up to and with the one that
            completed a stop string.
        """
        text = ""
        last = len(tokens) - 1
        for index, token in enumerate(tokens):
            self.completion_tokens += 1
            if silent_last and index == last:
                break
            piece = self._detokenizer.push(token.token_id)
            if self.completion_tokens <= self._min_tokens:
                text += piece
                continue
            text += self._until_stop(piece)
            if self._stops.matched is not None:
                return text, tokens[: index + 1]
        return text, tokens

    def flush(self) -> str:
        """End the text: what was held back, unless its last piece completes a stop string."""
        text = self._until_stop(self._detokenizer.flush())
        return text + self._stops.flush()

    def _until_stop(self, piece: str) -> str:
        if self._stops.matched is not None:
            return ""
        text = self._stops.push(piece)
        if self._include_stop and self._stops.matched is not None:
            return text + self._stops.matched
        return text
