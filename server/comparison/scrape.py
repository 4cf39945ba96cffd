"""Reads a server's metrics as Prometheus does. Knows nothing of what they mean."""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_TIMEOUT_S = 30.0


def scrape(url: str) -> tuple[Sample, ...]:
    """Every sample of a page of metrics."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - our own server
        page = answer.read().decode()
    families = text_string_to_metric_families(page)
    return tuple(sample for family in families for sample in family.samples)


def total(samples: Sequence[Sample], name: str, **labels: str) -> float:
    """The sum of the samples of a name that have these labels; 0 when there are none."""
    return sum(
        sample.value
        for sample in samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
