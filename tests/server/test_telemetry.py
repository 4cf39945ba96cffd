"""Metric families, their labels and buckets, and who feeds them."""

from __future__ import annotations

import re
from contextvars import copy_context
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from artifacts.host_figures import HostFigures
from artifacts.manifest import Manifest
from server.catalog import BudgetState, BudgetView
from server.engine.messages import StepKind, Timings, VariantLoad
from server.errors import Status
from server.observer import RequestRecord
from server.request_context import LONGEST_ID, begin, current, traced
from server.shadow_scores import Shadowed, ShadowScores
from server.telemetry import BUCKETS_S, Telemetry

FAMILIES = {
    "inference_time_to_first_token_seconds": "histogram",
    "inference_inter_token_latency_seconds": "histogram",
    "inference_request_duration_seconds": "histogram",
    "inference_queue_seconds": "histogram",
    "inference_prefill_seconds": "histogram",
    "inference_decode_seconds": "histogram",
    "inference_step_seconds": "histogram",
    "inference_requests": "counter",
    "inference_prompt_tokens": "counter",
    "inference_accepted_tokens": "counter",
    "inference_cached_tokens": "counter",
    "inference_draft_tokens": "counter",
    "inference_generated_tokens": "counter",
    "inference_engine_seconds": "counter",
    "inference_running_requests": "gauge",
    "inference_waiting_requests": "gauge",
    "inference_kv_cache_usage_ratio": "gauge",
    "inference_batch_rows": "gauge",
    "inference_server_info": "gauge",
    "inference_server_running_requests": "gauge",
    "inference_server_waiting_requests": "gauge",
    "inference_server_kv_cache_usage_ratio": "gauge",
    "inference_variant_info": "gauge",
    "inference_variant_size_bytes": "gauge",
    "inference_variant_traffic_share": "gauge",
    "inference_variant_quality": "gauge",
    "inference_variant_speed": "gauge",
    "inference_variant_within_budget": "gauge",
    "inference_shadow_positions": "counter",
    "inference_shadow_agreements": "counter",
    "inference_shadow_kl_lower_bound_nats": "counter",
    "inference_shadow_tokens": "counter",
    "inference_shadow_dropped": "counter",
    "inference_startup_seconds": "gauge",
}


@pytest.fixture
def telemetry() -> Telemetry:
    telemetry = Telemetry("demo")
    telemetry.add_variant("int8")
    return telemetry


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, {"model": "demo", "variant": "int8", **labels})


def test_buckets_show_a_gain_of_a_fifth() -> None:
    """From 1 ms to 120 s, each bound at most 1.35 times the one before."""
    assert (BUCKETS_S[0], BUCKETS_S[-1]) == (0.001, 120.0)
    assert all(1 < after / before <= 1.35 for before, after in pairwise(BUCKETS_S))


def test_families_are_the_documented_ones(
    telemetry: Telemetry, manifest: Manifest, host_figures: HostFigures
) -> None:
    """Names and types are an interface: dashboards depend on them."""
    telemetry.describe("int8", "digest", manifest)
    telemetry.measured("int8", host_figures)
    telemetry.took("load", 1.0, "int8")
    telemetry.directed({"int8": 1.0})
    telemetry.shadowed(Shadowed("baseline", "int8", 30, ShadowScores(20, 0.5, 18, -1.0)))
    telemetry.judged("int8", BudgetView(BudgetState.WITHIN, {"kl_mean": 0.1}))
    page = openmetrics(telemetry.registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert {name: family.type for name, family in families.items()} == FAMILIES
    for family in families.values():
        assert family.documentation.endswith(".")
        for sample in family.samples:
            is_of_server = family.name.startswith("inference_server_")
            assert {"model", "variant"} - set(sample.labels) == (
                {"variant"} if is_of_server else set()
            )


def test_the_documentation_lists_every_family() -> None:
    """By the name that queries use, with its type, and none that is not there."""
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`inference_[^|]+) \| (\w+) \|", page, re.MULTILINE)
    documented = {name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}
    assert documented == {
        f"{name}_total" if kind == "counter" else name: kind for name, kind in FAMILIES.items()
    }


def test_figures_of_this_machine_are_gauges(
    telemetry: Telemetry, manifest: Manifest, host_figures: HostFigures
) -> None:
    """Speeds by measure; the ends of quality's intervals beside its values."""
    telemetry.describe("int8", "digest", manifest)
    telemetry.measured("int8", host_figures)
    speed, quality = "inference_variant_speed", "inference_variant_quality"
    assert value(telemetry, speed, measure="decode_1_tokens_per_second") == 96.5
    assert value(telemetry, speed, measure="inter_token_p50_seconds") == 0.01
    assert value(telemetry, quality, measure="kl_mean") == manifest.quality.kl_mean  # type: ignore[union-attr]
    assert value(telemetry, quality, measure="kl_mean_low") == 0.008
    assert value(telemetry, quality, measure="kl_mean_high") == 0.012


def test_a_finished_request_is_counted_and_timed(telemetry: Telemetry) -> None:
    """Tokens, status and each phase appear under the request's variant."""
    telemetry.submitted("int8", 7)
    telemetry.generated("int8", 1)
    telemetry.generated("int8", 3)
    telemetry.first_token("int8", 0.02)
    telemetry.next_tokens("int8", 0.01, 3)
    telemetry.finished(
        RequestRecord(
            "int8", Status.OK, 1.0, 7, 4, 0, Timings(queue_s=0.1, prefill_s=0.2, decode_s=0.3)
        )
    )
    assert value(telemetry, "inference_requests_total", status="ok") == 1
    assert value(telemetry, "inference_prompt_tokens_total") == 7
    assert value(telemetry, "inference_generated_tokens_total") == 4
    assert value(telemetry, "inference_time_to_first_token_seconds_sum") == 0.02
    assert value(telemetry, "inference_inter_token_latency_seconds_count") == 3
    assert value(telemetry, "inference_queue_seconds_sum") == 0.1
    assert value(telemetry, "inference_prefill_seconds_sum") == 0.2
    assert value(telemetry, "inference_decode_seconds_sum") == 0.3
    assert value(telemetry, "inference_request_duration_seconds_count") == 1


def test_a_cancelled_request_pulls_no_latency_down(telemetry: Telemetry) -> None:
    """Only requests that ended well are timed; all are counted."""
    timings = Timings(queue_s=0.1, prefill_s=0.2, decode_s=0.3)
    for status in (Status.CANCELLED, Status.DEADLINE_EXCEEDED):
        telemetry.finished(RequestRecord("int8", status, 0.01, 7, 2, timings=timings))
    assert value(telemetry, "inference_requests_total", status="cancelled") == 1
    assert value(telemetry, "inference_generated_tokens_total") == 0  # was told while it ran
    assert value(telemetry, "inference_request_duration_seconds_count") == 0


def test_an_unknown_variant_makes_no_series_of_its_name(telemetry: Telemetry) -> None:
    """A caller cannot grow the number of series."""
    telemetry.finished(RequestRecord("", Status.NOT_FOUND, 0.01))
    sample = telemetry.registry.get_sample_value(
        "inference_requests_total", {"model": "demo", "variant": "", "status": "not_found"}
    )
    assert sample == 1
    assert value(telemetry, "inference_requests_total", status="not_found") == 0


def test_steps_feed_engine_time_and_gauges(telemetry: Telemetry) -> None:
    """What a variant costs by itself, and how full it is."""
    load = VariantLoad(
        running_requests=2, waiting_requests=1, reserved_tokens=50, kv_budget_tokens=200,
        batch_rows=2,
    )  # fmt: skip
    telemetry.stepped("int8", StepKind.DECODE, 0.25, load)
    telemetry.stepped("int8", StepKind.PREFILL, 0.5, load)
    assert value(telemetry, "inference_engine_seconds_total") == 0.75
    assert value(telemetry, "inference_step_seconds_count", kind="decode") == 1
    assert value(telemetry, "inference_running_requests") == 2
    assert value(telemetry, "inference_waiting_requests") == 1
    assert value(telemetry, "inference_kv_cache_usage_ratio") == 0.25
    assert value(telemetry, "inference_batch_rows") == 2


def test_a_router_reads_one_value_per_server(telemetry: Telemetry) -> None:
    """Of all variants: requests add up, and the fullest cache is the one that refuses first."""
    telemetry.add_variant("int4")
    telemetry.loaded("int8", VariantLoad(2, 1, 50, 200, 2))
    telemetry.loaded("int4", VariantLoad(3, 4, 90, 100, 1))
    names = ("running_requests", "waiting_requests", "kv_cache_usage_ratio")
    values = [
        telemetry.registry.get_sample_value(f"inference_server_{name}", {"model": "demo"})
        for name in names
    ]
    assert values == [5, 5, 0.9]
    telemetry.loaded("int4", VariantLoad(0, 0, 0, 100, 0))
    labels = {"model": "demo"}
    assert telemetry.registry.get_sample_value("inference_server_running_requests", labels) == 2


def test_a_server_without_variants_is_idle() -> None:
    """A router finds the families before anything is loaded."""
    registry = Telemetry("demo").registry
    name = "inference_server_kv_cache_usage_ratio"
    assert registry.get_sample_value(name, {"model": "demo"}) == 0


LATENCIES = (
    "time_to_first_token",
    "inter_token_latency",
    "request_duration",
    "queue",
    "prefill",
    "decode",
)


def exemplars(telemetry: Telemetry) -> dict[str, dict[str, str]]:
    """The labels of each latency family's exemplar, as OpenMetrics writes them."""
    page = openmetrics(telemetry.registry).decode()
    return {
        family.name.removeprefix("inference_").removesuffix("_seconds"): sample.exemplar.labels
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.exemplar is not None
    }


def observe(telemetry: Telemetry) -> None:
    """One request, in its own task."""
    telemetry.first_token("int8", 0.02)
    telemetry.next_tokens("int8", 0.01, 3)
    timings = Timings(queue_s=0.1, prefill_s=0.2, decode_s=0.3)
    record = RequestRecord("int8", Status.OK, 1.0, 7, 4, timings=timings, context=current())
    telemetry.finished(record)


def test_exemplars_lead_to_the_request_or_its_trace(telemetry: Telemetry) -> None:
    """The trace where there is one, else the id that logs have; the longest one still fits."""
    longest = "x" * LONGEST_ID

    def observe_both() -> list[dict[str, dict[str, str]]]:
        begin(longest)
        observe(telemetry)
        by_id = exemplars(telemetry)
        traced("ab" * 16, None)
        observe(telemetry)
        return [by_id, exemplars(telemetry)]

    by_id, by_trace = copy_context().run(observe_both)
    assert by_id == {key: {"request_id": longest} for key in LATENCIES}
    assert by_trace == {key: {"trace_id": "ab" * 16} for key in LATENCIES}


def test_exemplars_are_openmetrics_only(telemetry: Telemetry) -> None:
    """The older text format knows none, and what no request caused has none."""
    copy_context().run(observe, telemetry)
    assert exemplars(telemetry) == {}
    copy_context().run(lambda: (begin("id-1"), observe(telemetry)))
    assert b"id-1" in openmetrics(telemetry.registry)
    assert b"id-1" not in generate_latest(telemetry.registry)


def test_counters_begin_at_zero(telemetry: Telemetry) -> None:
    """A series that springs up at 1 has no rate."""
    assert value(telemetry, "inference_requests_total", status="ok") == 0
    assert value(telemetry, "inference_engine_seconds_total") == 0
    unknown = {"model": "demo", "variant": "", "status": "not_found"}
    assert telemetry.registry.get_sample_value("inference_requests_total", unknown) == 0


def test_what_serves_is_described(telemetry: Telemetry, manifest: Manifest) -> None:
    """Artifact, chain, size and each measure of quality can be joined to latencies."""
    telemetry.describe("int8", "digest", manifest)
    chain = '[{"quantize":{"bits":8}}]'
    assert value(telemetry, "inference_variant_info", artifact="digest", chain=chain) == 1
    assert value(telemetry, "inference_variant_size_bytes") == 1000
    assert value(telemetry, "inference_variant_quality", measure="kl_mean") == 0.01
    assert value(telemetry, "inference_variant_quality", measure="perplexity") == 12.5
    assert value(telemetry, "inference_variant_quality", measure="original_perplexity") is None


def test_a_budget_shows_once_it_is_judged(telemetry: Telemetry) -> None:
    """Neither a variant without one nor one that nobody has judged yet is within."""
    shown = []
    for state in (None, BudgetState.WITHIN, BudgetState.UNVERIFIED, BudgetState.EXCEEDED):
        if state is not None:
            telemetry.judged("int8", BudgetView(state, {}))
        shown.append(value(telemetry, "inference_variant_within_budget"))
    assert shown == [None, 1, None, 0]


def test_only_what_serves_now_is_described(telemetry: Telemetry, manifest: Manifest) -> None:
    """After a rollback the artifact that was withdrawn is no longer joined to latencies."""
    telemetry.describe("int8", "before", manifest)
    telemetry.describe("int8", "after", manifest)
    chain = '[{"quantize":{"bits":8}}]'
    assert value(telemetry, "inference_variant_info", artifact="before", chain=chain) is None
    assert value(telemetry, "inference_variant_info", artifact="after", chain=chain) == 1


def test_another_artifact_inherits_no_figure(
    telemetry: Telemetry, manifest: Manifest, host_figures: HostFigures
) -> None:
    """Quality, speed, budget and engine seconds per token were the old one's."""
    telemetry.describe("int8", "before", manifest)
    telemetry.measured("int8", host_figures)
    telemetry.judged("int8", BudgetView(BudgetState.WITHIN, {}))
    telemetry.submitted("int8", 10)
    telemetry.stepped("int8", StepKind.PREFILL, 0.5, VariantLoad(1, 0, 10, 100, 1))
    assert telemetry.seconds_per_token("int8") == 0.05
    telemetry.describe("int8", "before", manifest)  # as it was: nothing is forgotten
    assert telemetry.seconds_per_token("int8") == 0.05
    bare = manifest.model_copy(update={"lineage": manifest.lineage[:1]})
    telemetry.judged("int8", None)
    telemetry.describe("int8", "after", bare)
    assert telemetry.seconds_per_token("int8") is None
    assert value(telemetry, "inference_variant_within_budget") is None
    for family in ("quality", "speed"):
        text = f"inference_variant_{family}{{measure="
        assert text.encode() not in generate_latest(telemetry.registry)
    assert value(telemetry, "inference_variant_size_bytes") == bare.size_bytes


def test_two_servers_in_one_process_share_nothing() -> None:
    """There is no global registry."""
    first, second = Telemetry("m"), Telemetry("m")
    first.add_variant("v")
    assert b'variant="v"' in generate_latest(first.registry)
    assert b'variant="v"' not in generate_latest(second.registry)
