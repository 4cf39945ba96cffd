"""The HTTP face under requests made from its own OpenAPI document, and under bodies that are none.

Never a status of 500 for what a caller sent, never an answer without an end, never a dead server.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.http.openapi import document
from tests.survival.conftest import Survivor
from tests.survival.messages import WORDS

CASES = int(os.environ.get("FUZZ_CASES", "10000"))  # of the slow test
LIMIT_S = 60.0
PATHS = ("/v1/completions", "/v1/chat/completions")
VALID: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
}
GOOD = frozenset({200, 400, 404, 405, 409, 429, 504})

SCHEMA = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def client(survivor: Survivor) -> Iterator[httpx.Client]:
    url = survivor.server.http_url.removesuffix("/v1")
    with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
        yield client


def test_the_document_is_valid(client: httpx.Client) -> None:
    """As the server gives it, and by the rules of OpenAPI 3.1."""
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.validate()
    assert set(schema) == {*PATHS, "/v1/models", "/v1/models/{model}"}


def test_a_document_that_is_wrong_is_noticed() -> None:
    """Validation that lets everything pass would prove nothing."""
    wrong = json.loads(json.dumps(document()))
    wrong["paths"]["/v1/models"]["get"]["responses"]["200"].pop("description")
    wrong["paths"]["/v1/models"]["get"]["parameters"] = {"name": 1}
    with pytest.raises(Exception, match=r"(?i)is not|valid"):
        schemathesis.openapi.from_dict(wrong).validate()


def short(content: Any) -> Any:
    """A body whose answer is short."""
    if isinstance(content, dict):
        for name in ("max_tokens", "max_completion_tokens"):
            value = content.get(name)
            if value is None or (isinstance(value, int) and value > 4):
                content[name] = 2
        content.pop("max_completion_tokens") if content["max_completion_tokens"] == 2 else None
    return content


@st.composite
def bodies(draw: Any, path: str) -> bytes:
    """A body: from the document, a valid one with some fields from it, or no JSON at all."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.one_of(st.binary(max_size=60), st.sampled_from(WORDS).map(str.encode)))
    content = draw(SCHEMA[path]["POST"].as_strategy().map(lambda case: case.body))
    if kind < 7 and isinstance(content, dict) and content:
        names = draw(st.lists(st.sampled_from(sorted(content)), max_size=2))
        content = {**VALID[path], **{name: content[name] for name in names}}
    written = json.dumps(short(content)).encode()
    if kind == 9:
        cut = draw(st.integers(0, len(written)))
        return written[:cut]
    return written


def whole(response: httpx.Response) -> bool:
    """Whether an answer has all that it is to have."""
    if response.headers["content-type"].startswith("text/event-stream"):
        text = response.text
        return text.endswith("data: [DONE]\n\n") or '"error"' in text.rsplit("data: ", 1)[1]
    return isinstance(response.json(), dict)


def fuzz(survivor: Survivor, client: httpx.Client, cases: int) -> None:
    """Make many requests; each must be answered wholly."""
    survivor.settle()
    before = survivor.ended()
    seen: Counter[int] = Counter()

    @settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(PATHS).flatmap(lambda path: st.tuples(st.just(path), bodies(path))))
    def each(drawn: tuple[str, bytes]) -> None:
        path, body = drawn
        response = client.post(path, content=body, headers={"content-type": "application/json"})
        seen[response.status_code] += 1
        assert response.status_code in GOOD, (path, body, response.text)
        assert whole(response), (path, body, response.text)
        assert "internal error" not in response.text

    each()
    survivor.check()
    counted = survivor.ended() - before
    assert counted["internal"] == 0
    assert counted["ok"] >= seen[200] > 0
    assert seen[400] > 0


def test_random_requests_end_well(survivor: Survivor, client: httpx.Client) -> None:
    """A few of each method."""
    fuzz(survivor, client, 60)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_random_requests_end_well(survivor: Survivor, client: httpx.Client) -> None:
    """The same, for long."""
    fuzz(survivor, client, CASES)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", b'{"prompt": "\\ud800"}'),
        ("/v1/completions", b'{"\\udfff": 1, "prompt": "x"}'),
        ("/v1/completions", b'{"prompt": "\xed\xa0\x80"}'),
        ("/v1/completions", b'{"prompt": "x", "temperature": NaN}'),
        ("/v1/completions", b'{"prompt": "x", "temperature": 1e999}'),
        ("/v1/completions", b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}"),
        ("/v1/completions", b"[" * 100_000),
        ("/v1/chat/completions", b'{"messages": [], "tools": [' + b'{"a":' * 500 + b"1"),
        (
            "/v1/chat/completions",
            b'{"messages": [{"role": "user"}], "tools": ['
            + b'{"a":' * 500
            + b"1"
            + b"}" * 500
            + b"]}",
        ),
        ("/v1/completions", b'{"prompt": "x", "' + b"y" * 100_000 + b'": 1}'),
    ],
)
def test_bodies_that_text_handling_stumbles_over(
    client: httpx.Client, path: str, body: bytes
) -> None:
    """Each is the caller's error, told in a few words."""
    response = client.post(path, content=body)
    assert response.status_code == 400, response.text
    assert len(response.text) < 1000


@pytest.mark.parametrize("path", PATHS)
def test_a_number_takes_no_memory_before_it_is_judged(
    client: httpx.Client, survivor: Survivor, path: str
) -> None:
    """Five million choices, of some hundred bytes each."""
    before = survivor.peak_bytes()
    response = client.post(path, json={**VALID[path], "n": 5_000_000})
    assert response.status_code == 400, response.text
    assert survivor.peak_bytes() - before < 100e6
