"""Whether requests are traced, and where their spans go: the config, then the environment.

Owns what is wrong with either. Imports nothing of OpenTelemetry before tracing is wanted: it is an
extra, and a server without it neither needs nor pays for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.errors import ServerError

if TYPE_CHECKING:
    from server.tracing.tracing import Tracing

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_FIELD = "telemetry.otlp_endpoint"


class TracingError(ServerError):
    """Tracing is wanted and cannot be had."""

    code = "tracing"


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Where spans go, and which share of the requests that no caller has decided on is sampled."""

    endpoint: str
    sample_ratio: float


def tracing_settings(
    endpoint: str | None, sample_ratio: float, environment: Mapping[str, str]
) -> TracingSettings | None:
    """What is wanted; None for no tracing.

    Raises:
        TracingError: What is wanted is not served.
    """
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return None
    name = _FIELD
    if endpoint is None:
        name = next((name for name in _ENDPOINTS if environment.get(name, "").strip()), "")
        if not name:
            return None
        endpoint = environment[name].strip()
        _check_protocol(environment)
    if not endpoint.startswith(("http://", "https://")):
        raise TracingError(
            f"{name}: {endpoint!r} is no URL.",
            remedy="Begin with http:// or, for TLS, https://, such as http://127.0.0.1:4317.",
        )
    return TracingSettings(endpoint, sample_ratio)


def open_tracing(settings: TracingSettings, model: str) -> Tracing:
    """Begin to trace; ``model`` is what the server serves variants of.

    Raises:
        TracingError: The extra is not installed.
    """
    try:
        from server.tracing.tracing import Tracing
    except ModuleNotFoundError as error:
        raise TracingError(
            f"{_FIELD}: tracing needs a package that is not installed ({error.name}).",
            remedy="Install inference-unlimited[tracing], or leave the field away and set "
            "OTEL_SDK_DISABLED=true if the environment asks for traces.",
        ) from error
    return Tracing(settings, model)


def _check_protocol(environment: Mapping[str, str]) -> None:
    for name in _PROTOCOLS:
        if (protocol := environment.get(name, "").strip()) not in ("", "grpc"):
            raise TracingError(
                f"{name}: {protocol!r} is not served; spans are sent over gRPC.",
                remedy=f"Name the collector's gRPC port (mostly 4317) in {_FIELD}.",
            )
