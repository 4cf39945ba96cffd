"""A client of llama.cpp's server, in a process of its own so that its cost can be told apart.

Speaks plain HTTP with the standard library: little work for a token. Knows nothing of processes.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

from benchmarks.workers.protocol import answer_requests
from benchmarks.workers.schedule import Stream, answer_of, wait_until

_STREAMS = 256
_EVENT = b"data: "
_WAIT_S = 0.05
_UNTOLD = -1  # which token it was


class LlamaClient:
    """Speaks to one server at a time."""

    def __init__(self) -> None:
        self._port = 0
        self._threads = ThreadPoolExecutor(_STREAMS)

    def connect(self, port: int) -> dict[str, Any]:
        """Speak to the server on that port of loopback."""
        self._port = port
        return {}

    def wait_serving(self, port: int, limit_s: float) -> dict[str, Any]:
        """Return when the server says that it serves."""
        self._port = port
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            try:
                connection = HTTPConnection("127.0.0.1", port, timeout=limit_s)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return {}
            except ConnectionError:
                pass
            finally:
                connection.close()
            time.sleep(_WAIT_S)
        raise RuntimeError("The server does not serve.")

    def generate(
        self,
        prompts: list[list[int]],
        new_tokens: int,
        *,
        limit_s: float,
        at_s: list[float] | None = None,
    ) -> dict[str, Any]:
        """Continue prompts at the same time, or each from its moment on, one stream each."""
        begun_s = time.monotonic()

        def stream(prompt: list[int], wanted_s: float) -> Stream:
            wait_until(begun_s + wanted_s)
            return self._stream(prompt, new_tokens, begun_s, limit_s)

        moments = at_s or [0.0] * len(prompts)
        return answer_of([*self._threads.map(stream, prompts, moments)], begun_s, new_tokens)

    def scores(self, windows: list[list[int]], into: str) -> dict[str, Any]:
        """Write the log-probabilities (windows, tokens, vocabulary) that the server gives.

        One request for each position: it tells those of the next token only.
        """
        import numpy as np

        found = []
        for window in windows:
            rows = []
            for end in range(1, len(window) + 1):
                answer = self._post(
                    {
                        "prompt": window[:end],
                        "n_predict": 1,
                        "temperature": 0,
                        "cache_prompt": True,
                        "id_slot": 0,
                        "n_probs": 1 << 20,
                    }
                )
                listed = answer["completion_probabilities"][0]["top_logprobs"]
                row = np.full(len(listed), -np.inf, np.float32)
                for one in listed:
                    row[one["id"]] = one["logprob"]
                rows.append(row)
            found.append(np.stack(rows))
        np.save(into, np.stack(found))
        return {}

    def _post(self, content: dict[str, Any]) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request("POST", "/completion", json.dumps(content))
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"The server says {answer}.")
        return answer

    def _stream(self, prompt: list[int], new_tokens: int, begun_s: float, limit_s: float) -> Stream:
        content = {
            "prompt": prompt,
            "n_predict": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
        }
        connection = HTTPConnection("127.0.0.1", self._port, timeout=limit_s)
        connection.request("POST", "/completion", json.dumps(content))
        response = connection.getresponse()
        stream = Stream()
        for line in response:
            if line.startswith(_EVENT) and not line.startswith(b"data: [DONE]"):
                event = json.loads(line[len(_EVENT) :])
                # Of tokens whose bytes are no whole characters yet, only the number is told.
                new = event["tokens_predicted"] - len(stream.tokens)
                stream.add([_UNTOLD] * new, time.monotonic() - begun_s)
        connection.close()
        return stream


if __name__ == "__main__":
    client = LlamaClient()
    answer_requests(
        {
            "connect": client.connect,
            "wait_serving": client.wait_serving,
            "generate": client.generate,
            "scores": client.scores,
        }
    )
