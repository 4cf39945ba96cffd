"""What is told of variants that come and go while the server runs."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from server.announcer import Announcer
from server.catalog import VariantState
from server.telemetry import Telemetry
from server.traffic import Traffic
from server.variants import Variants


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def telemetry() -> Telemetry:
    telemetry = Telemetry("demo")
    for name in ("a", "new"):
        telemetry.add_variant(name)
    return telemetry


@pytest.fixture
def variants(telemetry: Telemetry, clock: Clock) -> Variants:
    """One variant of the config; the process began at 90."""
    variants = Variants(["a"], {}, clock=clock)
    variants.watch(Announcer(telemetry, variants, started_s=90.0, clock=clock))
    return variants


def gauge(telemetry: Telemetry, family: str, variant: str, **labels: str) -> float | None:
    labels |= {"model": "demo", "variant": variant}
    return telemetry.registry.get_sample_value(family, labels)


def test_getting_ready_counts_from_the_start_or_from_when_the_load_began(
    variants: Variants, telemetry: Telemetry, clock: Clock
) -> None:
    """A load of ten seconds took ten, however long the server has run."""

    def ready_s(name: str) -> float | None:
        return gauge(telemetry, "inference_startup_seconds", name, phase="ready")

    variants.change("a", state=VariantState.READY)
    assert ready_s("a") == 10.0
    for name in ("new", "a"):
        clock.now_s += 1000.0
        if name == "a":
            variants.change("a", state=VariantState.UNLOADED)
        else:
            variants.add("new")
        variants.change(name, state=VariantState.PENDING)
        clock.now_s += 10.0
        variants.change(name, state=VariantState.READY)
        assert ready_s(name) == 10.0


def test_a_new_variant_has_its_share_and_going_is_logged(
    variants: Variants, telemetry: Telemetry
) -> None:
    """A share of 0 is a figure, too."""
    variants.add("new")
    variants.change("new", state=VariantState.PENDING)
    assert gauge(telemetry, "inference_variant_traffic_share", "new") == 0.0
    assert gauge(telemetry, "inference_variant_traffic_share", "a") == 1.0
    variants.direct(Traffic({"new": 1.0, "a": 3.0}))
    assert gauge(telemetry, "inference_variant_traffic_share", "new") == 0.25
    with capture_logs() as logs:
        variants.change("new", state=VariantState.UNLOADED)
    assert [(log["event"], log["variant"]) for log in logs] == [("unloading variant", "new")]
