"""The operators' listener: what each path answers, and when."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from server.catalog import VariantState, VariantView
from server.errors import ListenError
from server.listener import HttpListener
from server.ops import routes


@dataclass
class FakeHealth:
    is_alive: bool = True
    is_serving: bool = True
    is_draining: bool = False
    is_settled: bool = True
    seen: tuple[VariantView, ...] = field(default=())

    def alive(self) -> bool:
        return self.is_alive

    def serving(self) -> bool:
        return self.is_serving

    def draining(self) -> bool:
        return self.is_draining

    def settled(self) -> bool:
        return self.is_settled

    def views(self) -> tuple[VariantView, ...]:
        return self.seen


@pytest.fixture
def health() -> FakeHealth:
    return FakeHealth()


@pytest.fixture
async def client(health: FakeHealth) -> AsyncIterator[httpx.AsyncClient]:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc()
    listener = HttpListener(routes(registry, health), "127.0.0.1", 0, field="server.ops_port")
    listener.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.port}") as client:
        yield client
    await listener.stop()


async def status(client: httpx.AsyncClient, path: str) -> int:
    return (await client.get(path)).status_code


async def test_livez_follows_the_engine(client: httpx.AsyncClient, health: FakeHealth) -> None:
    """A supervisor restarts what no longer works, and leaves alone what only starts."""
    health.is_serving = health.is_settled = False
    assert await status(client, "/livez") == 200
    health.is_alive = False
    assert await status(client, "/livez") == 503


async def test_healthz_follows_the_default_variant(
    client: httpx.AsyncClient, health: FakeHealth
) -> None:
    """200 when a request without a variant would be answered."""
    health.is_settled = False
    assert await status(client, "/healthz") == 200
    health.is_serving = False
    assert await status(client, "/healthz") == 503


async def test_readyz_waits_for_every_variant_and_lists_them(
    client: httpx.AsyncClient, health: FakeHealth
) -> None:
    """Ready and failed both count as arrived; each is shown with its error."""
    health.seen = (
        VariantView("a", VariantState.READY),
        VariantView("b", VariantState.FAILED, error="the disk is full"),
    )
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ready",
        "variants": [
            {"name": "a", "state": "ready", "error": None},
            {"name": "b", "state": "failed", "error": "the disk is full"},
        ],
    }
    health.is_settled = False
    assert await status(client, "/readyz") == 503
    health.is_settled, health.is_draining = True, True
    assert (await client.get("/readyz")).json()["status"] == "draining"
    assert await status(client, "/readyz") == 503


async def test_metrics_come_in_the_form_that_is_asked_for(client: httpx.AsyncClient) -> None:
    """Prometheus negotiates; OpenMetrics ends with its own mark."""
    plain = await client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert "things_total 1.0" in plain.text
    modern = await client.get(
        "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"}
    )
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")


async def test_a_taken_port_names_field_and_remedy() -> None:
    """Two servers on one machine is the commonest first mistake."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"ops_port: cannot listen on 127\.0\.0\.1:{port}"):
            HttpListener(
                routes(CollectorRegistry(), FakeHealth()),
                "127.0.0.1",
                port,
                field="server.ops_port",
            )
