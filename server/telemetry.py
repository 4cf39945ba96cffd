"""Metrics: which families there are, and who feeds them.

Owns one Prometheus registry. ``Telemetry`` hears requests from the API side (event loop) and steps
from the engine (its thread); both only touch label children that were made when the variant was
added, so an observation costs a lock and an addition. A latency's exemplar is the request that this
task answers. Knows nothing of how metrics are exposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from artifacts.host_figures import HostFigures
from artifacts.manifest import Manifest, canonical_json
from server.catalog import BudgetState, BudgetView
from server.engine.messages import EngineObserver, StepKind, VariantLoad
from server.errors import Status
from server.observer import RequestObserver, RequestRecord
from server.request_context import current
from server.shadow_scores import Shadowed

_log = structlog.get_logger(__name__)

METRICS = "1"
"""The form of the metrics: raised when a family or label is renamed, removed or means another."""

_LABELS = ("model", "variant")
_SHORTEST_S, _LONGEST_S, _STEPS = 0.001, 120.0, 40


def _geometric_buckets() -> tuple[float, ...]:
    """41 bounds from 1 ms to 120 s, each 1.34 times the one before, to three digits.

    With wider buckets a gain of 20 % would hide inside one of them.
    """
    growth = (_LONGEST_S / _SHORTEST_S) ** (1 / _STEPS)
    exact = (_SHORTEST_S * growth**step for step in range(_STEPS + 1))
    return tuple(round(bound, 2 - math.floor(math.log10(bound))) for bound in exact)


BUCKETS_S = _geometric_buckets()
_NO_LOAD = VariantLoad(0, 0, 0, 0, 0)


class _Families:
    """Every family, registered once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, (*_LABELS, *labels), buckets=BUCKETS_S, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, (*_LABELS, *labels), registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, (*_LABELS, *labels), registry=registry)

        self.first_token = histogram(
            "inference_time_to_first_token_seconds",
            "From the request read to its first token handed to the stream.",
        )
        self.inter_token = histogram(
            "inference_inter_token_latency_seconds",
            "Gap before each token after the first; a step's gap is divided over its tokens.",
        )
        self.duration = histogram(
            "inference_request_duration_seconds",
            "From the request read to its last message handed to the stream.",
        )
        self.queue = histogram("inference_queue_seconds", "Wait for a slot and cache memory.")
        self.prefill = histogram("inference_prefill_seconds", "From a slot to the first token.")
        self.decode = histogram("inference_decode_seconds", "From the first token to the last.")
        self.step = histogram(
            "inference_step_seconds",
            "Engine time of one step, by what it computed: prefill, decode or mixed.",
            "kind",
        )
        self.requests = counter(
            "inference_requests_total", "Ended requests by gRPC status in lower case.", "status"
        )
        self.prompt_tokens = counter(
            "inference_prompt_tokens_total", "Tokens of prompts that went to the engine."
        )
        self.cached_tokens = counter(
            "inference_cached_tokens_total",
            "Prompt tokens of ended requests whose cache entries an earlier one had computed.",
        )
        self.generated_tokens = counter(
            "inference_generated_tokens_total", "Generated tokens handed to streams."
        )
        self.draft_tokens = counter(
            "inference_draft_tokens_total", "Tokens that were guessed and checked."
        )
        self.accepted_tokens = counter(
            "inference_accepted_tokens_total", "Guessed tokens that were right."
        )
        self.engine_seconds = counter(
            "inference_engine_seconds_total", "Engine time that the variant has used."
        )
        self.running = gauge("inference_running_requests", "Requests that hold a slot.")
        self.waiting = gauge("inference_waiting_requests", "Requests that wait for a slot.")
        self.kv_usage = gauge(
            "inference_kv_cache_usage_ratio", "Reserved tokens over the cache's budget."
        )
        self.batch_rows = gauge("inference_batch_rows", "Sequences in the latest step.")
        self.server_info = Gauge(
            "inference_server_info",
            "Always 1; says which version serves, and of which form its metrics are.",
            ("model", "version", "metrics"),
            registry=registry,
        )
        # For routers, which read one value per server.
        self.server_running = Gauge(
            "inference_server_running_requests",
            "Requests that hold a slot, of all variants.",
            ("model",),
            registry=registry,
        )
        self.server_waiting = Gauge(
            "inference_server_waiting_requests",
            "Requests that wait for a slot, of all variants.",
            ("model",),
            registry=registry,
        )
        self.server_kv_usage = Gauge(
            "inference_server_kv_cache_usage_ratio",
            "Reserved tokens over the budget of the fullest variant's cache.",
            ("model",),
            registry=registry,
        )
        self.info = gauge(
            "inference_variant_info",
            "Always 1; says which artifact serves and through which chain it was built.",
            "artifact",
            "chain",
        )
        self.size = gauge("inference_variant_size_bytes", "Bytes of the variant's artifact.")
        self.traffic_share = gauge(
            "inference_variant_traffic_share", "Share of the requests that name no variant, 0..1."
        )
        self.quality = gauge(
            "inference_variant_quality",
            "Quality against the original model, measured when the artifact was built.",
            "measure",
        )
        self.speed = gauge(
            "inference_variant_speed",
            "Speed and memory as `inference-unlimited compare` measured them on this machine.",
            "measure",
        )
        self.within_budget = gauge(
            "inference_variant_within_budget",
            "1: the artifact keeps to its budget, 0: it does not; absent while nobody knows.",
        )
        self.shadow_positions = counter(
            "inference_shadow_positions_total",
            "Positions of others' answers that the variant was judged on.",
            "serving",
        )
        self.shadow_agreements = counter(
            "inference_shadow_agreements_total",
            "Of these, where both variants think the same token likeliest.",
            "serving",
        )
        self.shadow_divergence = counter(
            "inference_shadow_kl_lower_bound_nats_total",
            "Sum over these of a lower bound of KL(serving || variant).",
            "serving",
        )
        self.shadow_tokens = counter(
            "inference_shadow_tokens_total", "Tokens that the variant computed to be judged."
        )
        self.shadow_dropped = counter(
            "inference_shadow_dropped_total",
            "Answers that the variant was to be judged on and was not, for want of time or room.",
        )
        self.startup = gauge(
            "inference_startup_seconds", "How long each phase of starting took.", "phase"
        )


class _VariantMetrics:
    """The label children of one variant that are touched while serving."""

    def __init__(self, families: _Families, model: str, variant: str) -> None:
        labels = (model, variant)
        self.first_token = families.first_token.labels(*labels)
        self.inter_token = families.inter_token.labels(*labels)
        self.duration = families.duration.labels(*labels)
        self.queue = families.queue.labels(*labels)
        self.prefill = families.prefill.labels(*labels)
        self.decode = families.decode.labels(*labels)
        self.step = {kind: families.step.labels(*labels, kind.value) for kind in StepKind}
        # A series that begins at 0 makes its first increase visible to rate().
        self.requests = {
            status: families.requests.labels(*labels, status.value) for status in Status
        }
        self.prompt_tokens = families.prompt_tokens.labels(*labels)
        self.cached_tokens = families.cached_tokens.labels(*labels)
        self.generated_tokens = families.generated_tokens.labels(*labels)
        self.draft_tokens = families.draft_tokens.labels(*labels)
        self.accepted_tokens = families.accepted_tokens.labels(*labels)
        self.engine_seconds = families.engine_seconds.labels(*labels)
        self.running = families.running.labels(*labels)
        self.waiting = families.waiting.labels(*labels)
        self.kv_usage = families.kv_usage.labels(*labels)
        self.batch_rows = families.batch_rows.labels(*labels)
        self.shadow_tokens = families.shadow_tokens.labels(*labels)
        self.shadow_dropped = families.shadow_dropped.labels(*labels)
        # Beside the counters, whose values only a scrape may read.
        self.seconds = 0.0
        self.tokens = 0
        self.load = _NO_LOAD

    def show(self, load: VariantLoad) -> None:
        self.load = load
        self.running.set(load.running_requests)
        self.waiting.set(load.waiting_requests)
        self.kv_usage.set(_kv_usage(load))
        self.batch_rows.set(load.batch_rows)


def _kv_usage(load: VariantLoad) -> float:
    return load.reserved_tokens / max(load.kv_budget_tokens, 1)


class Telemetry(RequestObserver, EngineObserver):
    """Feeds the families; one per server."""

    def __init__(self, model: str) -> None:
        # Twice the series for a timestamp that nobody here reads; a switch of the library's own.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        self._model = model
        self._families = _Families(self.registry)
        self._variants: dict[str, _VariantMetrics] = {}
        # As for variants: a series that begins at 0 makes its first increase visible to rate().
        self._families.requests.labels(model, "", Status.NOT_FOUND.value)
        self._described: dict[str, tuple[str, ...]] = {}  # variant -> labels of what serves
        self._families.server_info.labels(model, version("inference-unlimited"), METRICS).set(1)
        self._show_server(self._families.server_running, lambda load: load.running_requests, sum)
        self._show_server(self._families.server_waiting, lambda load: load.waiting_requests, sum)
        self._show_server(self._families.server_kv_usage, _kv_usage, max)

    def add_variant(self, variant: str) -> None:
        """Make the series of a configured variant, before anything is observed of it."""
        self._variants[variant] = _VariantMetrics(self._families, self._model, variant)

    def describe(self, variant: str, artifact: str, manifest: Manifest) -> None:
        """Show what serves: artifact, chain, size and measured quality."""
        labels = (self._model, variant)
        info = (*labels, artifact, canonical_json(manifest.chain).decode())
        if (before := self._described.get(variant, info)) != info:
            self._forget(variant, before)
        self._described[variant] = info
        self._families.info.labels(*info).set(1)
        self._families.size.labels(*labels).set(manifest.size_bytes)
        if manifest.quality is not None:
            about = {"documents", "positions", "isa", "text_sha256", "by_document"}
            figures = manifest.quality.model_dump(exclude=about)
            for measure, value in figures.items():
                if value is not None:
                    self._families.quality.labels(*labels, measure).set(value)

    def _forget(self, variant: str, described: tuple[str, ...]) -> None:
        """Another artifact serves from now on: nothing that was measured is true of it."""
        self._families.info.remove(*described)
        labels = {"model": self._model, "variant": variant}
        self._families.quality.remove_by_labels(labels)
        self._families.speed.remove_by_labels(labels)
        metrics = self._of(variant)
        metrics.seconds, metrics.tokens = 0.0, 0

    def measured(self, variant: str, figures: HostFigures) -> None:
        """Show what was measured on this machine: speeds, and the intervals of quality."""
        labels = (self._model, variant)
        for measure, figure in figures.speeds.items():
            self._families.speed.labels(*labels, measure).set(figure.value)
        for measure, figure in figures.quality.items():
            for end, value in (("low", figure.low), ("high", figure.high)):
                if value is not None:
                    self._families.quality.labels(*labels, f"{measure}_{end}").set(value)

    def judged(self, variant: str, budget: BudgetView | None) -> None:
        """Show how a variant stands to its budget, if it has one."""
        labels = (self._model, variant)
        if budget is None or budget.state is BudgetState.UNVERIFIED:
            self._families.within_budget.remove(*labels)
        else:
            is_within = budget.state is BudgetState.WITHIN
            self._families.within_budget.labels(*labels).set(is_within)

    def directed(self, shares: Mapping[str, float]) -> None:
        """Show how routed traffic is split."""
        for variant, share in shares.items():
            self._families.traffic_share.labels(self._model, variant).set(share)

    def took(self, phase: str, seconds: float, variant: str = "") -> None:
        """A phase of starting is over."""
        self._families.startup.labels(self._model, variant, phase).set(seconds)

    # Of requests, on the event loop.

    def submitted(self, variant: str, prompt_tokens: int) -> None:
        """See ``RequestObserver``."""
        metrics = self._of(variant)
        metrics.prompt_tokens.inc(prompt_tokens)
        metrics.tokens += prompt_tokens

    def generated(self, variant: str, count: int) -> None:
        """See ``RequestObserver``."""
        metrics = self._of(variant)
        metrics.generated_tokens.inc(count)
        metrics.tokens += count

    def first_token(self, variant: str, seconds: float) -> None:
        """See ``RequestObserver``."""
        self._of(variant).first_token.observe(seconds, current().exemplar)

    def next_tokens(self, variant: str, seconds_per_token: float, count: int) -> None:
        """See ``RequestObserver``."""
        inter_token = self._of(variant).inter_token
        inter_token.observe(seconds_per_token, current().exemplar)
        for _ in range(count - 1):
            inter_token.observe(seconds_per_token)

    def finished(self, record: RequestRecord) -> None:
        """See ``RequestObserver``."""
        if not record.variant:  # an unknown variant has no latencies, only a count
            self._families.requests.labels(self._model, "", record.status.value).inc()
            return
        metrics = self._of(record.variant)
        metrics.requests[record.status].inc()
        metrics.cached_tokens.inc(record.cached_tokens)
        # One that was cancelled or refused would pull the latencies down.
        if record.status is Status.OK and record.timings is not None:
            exemplar = record.context.exemplar
            metrics.duration.observe(record.duration_s, exemplar)
            metrics.queue.observe(record.timings.queue_s, exemplar)
            metrics.prefill.observe(record.timings.prefill_s, exemplar)
            metrics.decode.observe(record.timings.decode_s, exemplar)

    def shadowed(self, one: Shadowed) -> None:
        """See ``RequestObserver``."""
        labels = (self._model, one.candidate, one.serving)
        scores, families = one.scores, self._families
        families.shadow_positions.labels(*labels).inc(scores.positions)
        families.shadow_agreements.labels(*labels).inc(scores.agreements)
        families.shadow_divergence.labels(*labels).inc(scores.kl_lower_bound)
        metrics = self._of(one.candidate)
        metrics.shadow_tokens.inc(one.tokens)
        metrics.tokens += one.tokens

    def shadow_dropped(self, candidate: str) -> None:
        """See ``RequestObserver``."""
        self._of(candidate).shadow_dropped.inc()

    def seconds_per_token(self, variant: str) -> float | None:
        """Engine seconds per token that a variant has computed; None where there is none."""
        metrics = self._of(variant)
        return metrics.seconds / metrics.tokens if metrics.tokens else None

    # Of the engine, on its thread.

    def stepped(self, variant: str, kind: StepKind, seconds: float, load: VariantLoad) -> None:
        """See ``EngineObserver``."""
        metrics = self._of(variant)
        metrics.step[kind].observe(seconds)
        metrics.engine_seconds.inc(seconds)
        metrics.seconds += seconds
        metrics.show(load)

    def drafted(self, variant: str, count: int, accepted: int) -> None:
        """See ``EngineObserver``."""
        metrics = self._of(variant)
        metrics.draft_tokens.inc(count)
        metrics.accepted_tokens.inc(accepted)

    def loaded(self, variant: str, load: VariantLoad) -> None:
        """See ``EngineObserver``."""
        self._of(variant).show(load)

    def failed(self, variant: str, error: BaseException, **context: Any) -> None:
        """See ``EngineObserver``."""
        what = "step failed" if variant else "the engine failed"
        _log.error(what, variant=variant or None, exc_info=error, **context)

    def _show_server(
        self,
        gauge: Gauge,
        measure: Callable[[VariantLoad], float],
        combine: Callable[[list[float]], float],
    ) -> None:
        """Have a scrape put the variants' latest loads together."""
        gauge.labels(self._model).set_function(
            lambda: combine([measure(each.load) for each in [*self._variants.values()]] or [0.0])
        )

    def _of(self, variant: str) -> _VariantMetrics:
        return self._variants[variant]
