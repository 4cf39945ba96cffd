"""``serve run deploy.ray.application:application config=CONFIG``: a config's variants on a cluster.

Owns what Ray Serve is told: a deployment per variant whose replicas grow with its queue, and the
ingress before them. Knows nothing of how a call passes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from deploy.ray.ingress import Ingress
from deploy.ray.replica import Replica
from server.config.fields import Config
from server.config.sources import load

SERVICERS = ("protos.inference_pb2_grpc.add_InferenceServicer_to_server",)
"""What Ray Serve's proxy is told with ``grpc_servicer_functions``."""

_GRACE_S = 10.0  # beyond the server's own drain


class Arguments(BaseModel):
    """What ``serve run``, or an entry of a Serve config, may say."""

    model_config = ConfigDict(extra="forbid")

    config: Path = Field(description="Config file; every node reads the store that it names.")
    targets: Path | None = Field(
        default=None, description="Folder of Prometheus's file_sd, on every node."
    )
    min_replicas: int = Field(default=1, ge=0, description="Of each variant.")
    max_replicas: int = Field(default=4, ge=1, description="Of each variant.")
    cpus: float = Field(default=1.0, gt=0, description="Of each replica; also its threads.")


def application(arguments: dict[str, Any]) -> Application:
    """Everything behind one gRPC address."""
    told = Arguments.model_validate(arguments)
    config = load(told.config, environment=os.environ, flags={})
    replicas = {name: _replicas(told, config, name) for name in config.variants}
    ingress = serve.deployment(
        Ingress, name="ingress", max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0}
    )
    return ingress.bind(replicas, config.traffic)


def _replicas(told: Arguments, config: Config, variant: str) -> Application:
    slots = config.engine.slots
    deployment = serve.deployment(
        Replica,
        name=variant,
        max_ongoing_requests=slots + config.engine.max_waiting,
        autoscaling_config={
            "min_replicas": told.min_replicas,
            "max_replicas": told.max_replicas,
            # Requests that run or wait, of all that were sent to it.
            "target_ongoing_requests": slots,
        },
        graceful_shutdown_timeout_s=config.server.drain_seconds + _GRACE_S,
        ray_actor_options={"num_cpus": told.cpus},
    )
    targets = None if told.targets is None else str(told.targets)
    return deployment.bind(_content(config, variant, told.cpus), variant, targets)


def _content(config: Config, variant: str, cpus: float) -> dict[str, Any]:
    """A config with one variant, and the one that drafts for it."""
    chosen = config.variants[variant]
    names = [variant]
    if chosen.speculation is not None and chosen.speculation.variant is not None:
        names.append(chosen.speculation.variant)
    content: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True)
    content["variants"] = {name: content["variants"][name] for name in names}
    content.pop("traffic", None)
    content["engine"] = {"threads": max(1, int(cpus)), **content.get("engine", {})}
    content["server"] = {**content.get("server", {}), "host": "127.0.0.1"}  # the ingress asks
    return content
