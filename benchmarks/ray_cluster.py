"""A Ray cluster of two nodes on this machine, for tests and for ``benchmarks.ray_cost``.

Ray listens on all interfaces whatever it is told, so a cluster is only made where there is none but
loopback: in a network namespace (``unshare --net``). Knows nothing of what is asked.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GRPC_PORT = 9000
TARGET = f"127.0.0.1:{GRPC_PORT}"
APPLICATION = "inference"
METADATA = (("application", APPLICATION),)
_OBJECTS = 100_000_000  # bytes of shared memory; messages do not go through it


@contextmanager
def two_nodes(cpus: int = 2) -> Iterator[None]:
    """A cluster, as long as the block lasts.

    Raises:
        RuntimeError: Others could reach it.
    """
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        raise RuntimeError("Ray would listen where others ask; run this by unshare --net.")
    import ray
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _OBJECTS}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def serving(config: Path, **arguments: Any) -> Iterator[None]:
    """Our application on the cluster; ``arguments`` as in ``deploy.ray.application``."""
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

    from deploy.ray.application import SERVICERS, application

    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host="127.0.0.1", port=8100),
        grpc_options=gRPCOptions(port=GRPC_PORT, grpc_servicer_functions=list(SERVICERS)),
    )
    try:
        told = application({"config": str(config), **arguments})
        # Without a route of its own the proxy for gRPC does not know it either.
        serve.run(told, name=APPLICATION, route_prefix="/inference")
        yield
    finally:
        serve.shutdown()
