"""The Prometheus of ``deploy/``, as it is shipped: the series of every variant arrive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.comparison.server_process import ROOT, ServerProcess
from tests.system.prometheus import ask, get, host_of, running, wait_for

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def servers(
    demo_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[ServerProcess]]:
    """Two of them, as replicas are."""
    environment = {"INFERENCE_UNLIMITED_STORE": str(demo_store)}
    folder = tmp_path_factory.mktemp("servers")
    with (
        ServerProcess(None, stderr=folder / "one.log", environment=environment) as one,
        ServerProcess(None, stderr=folder / "two.log", environment=environment) as two,
    ):
        one.wait_ready()
        two.wait_ready()
        yield [one, two]


def test_servers_that_a_file_names_are_scraped(
    servers: list[ServerProcess], tmp_path: Path
) -> None:
    """Every variant of each; one that is added to the file while Prometheus runs, too."""
    folder = tmp_path / "prometheus"
    shutil.copytree(ROOT / "deploy" / "prometheus", folder)
    for shipped in (folder / "targets").iterdir():
        shipped.unlink()  # ours have ports of their own
    hosts = [host_of(server) for server in servers]
    targets = folder / "targets" / "servers.json"
    targets.write_text(json.dumps([{"targets": hosts[:1]}]))
    with running(folder / "prometheus.yaml", tmp_path) as url:
        wait_for(lambda: variants(url, hosts[0]) == {"baseline", "int8", "int4"})
        rules = {rule["name"] for group in get(url, "rules")["groups"] for rule in group["rules"]}
        assert "InferenceServerDown" in rules
        assert variants(url, hosts[1]) == set()
        targets.write_text(json.dumps([{"targets": hosts}]))
        wait_for(lambda: variants(url, hosts[1]) == {"baseline", "int8", "int4"})


def variants(url: str, host: str) -> set[str]:
    """Those that Prometheus knows of a server."""
    found = ask(url, f'inference_variant_info{{job="inference-unlimited", instance="{host}"}}')
    return {sample["metric"]["variant"] for sample in found}
