"""Deployment files by their own judges, and what they say of each other and of the server.

``VALIDATORS`` names the folder with the judges' commands.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.comparison.server_process import ROOT
from server.config.sources import load

pytestmark = pytest.mark.deploy

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BASE = KUBERNETES / "base"
RELEASES = ("1.30", "1.37")  # the first that knows preStop.sleep by default, and the newest
# Of operators; their schemas come with them.
CUSTOM = {"ServiceMonitor", "ServingRuntime", "InferenceService"}
LABELS = {
    "app.kubernetes.io/name": "inference-unlimited",
    "app.kubernetes.io/component": "server",
}


def judged(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What one of the judges says."""
    found = Path(os.environ["VALIDATORS"]) / command
    return subprocess.run(
        [str(found), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def objects(folder: Path = KUBERNETES) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every object below a folder that a cluster is told of."""
    for path in sorted(folder.rglob("*.yaml")):
        for content in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if "apiVersion" in content and content["kind"] != "Kustomization":
                yield path, content


def one(kind: str, name: str = "inference-unlimited") -> dict[str, Any]:
    """The object of the base of that kind and name."""
    (found,) = (
        content
        for _, content in objects(BASE)
        if content["kind"] == kind and content["metadata"]["name"] == name
    )
    return found


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def files_of_kubernetes() -> list[Path]:
    known = {path for path, content in objects() if content["kind"] not in CUSTOM}
    return sorted(known)


@pytest.mark.parametrize("path", files_of_kubernetes(), ids=lambda path: path.name)
@pytest.mark.parametrize("release", RELEASES)
def test_objects_keep_to_the_schemas_of_kubernetes(path: Path, release: str) -> None:
    """Strictly: a key that is unknown is an error."""
    said = judged("kubernetes-validate", "--strict", "-k", release, path)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("readOnlyRootFilesystem: true", "readOnlyRootFileSystem: true"),
        ("replicas: 2", "replicas: two"),
    ],
)
def test_a_wrong_object_would_be_found(good: str, bad: str, tmp_path: Path) -> None:
    """A key that is misspelt, and a value of another type."""
    content = (BASE / "server.yaml").read_text(encoding="utf-8")
    assert good in content
    (planted := tmp_path / "server.yaml").write_text(content.replace(good, bad))
    assert judged("kubernetes-validate", "--strict", "-k", RELEASES[-1], planted).returncode != 0


def test_compose_keeps_to_its_specification(tmp_path: Path) -> None:
    """By the schema of the specification; one with a key that is unknown does not."""
    compose = DEPLOY / "compose.yaml"
    schema = ("--builtin-schema", "vendor.compose-spec")
    said = judged("check-jsonschema", *schema, compose)
    assert said.returncode == 0, said.stdout
    (planted := tmp_path / "compose.yaml").write_text(
        compose.read_text(encoding="utf-8").replace("restart:", "restarts:")
    )
    assert judged("check-jsonschema", *schema, planted).returncode != 0


def test_what_compose_mounts_is_there() -> None:
    """Where the servers of the composition look for it."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    mounts = [mount for service in services.values() for mount in service["volumes"]]
    ours = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(ours) == 5
    assert all((DEPLOY / path).exists() for path in ours)
    provider = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/dashboards/dashboards.yaml").read_text(encoding="utf-8")
    )
    folder = provider["providers"][0]["options"]["path"]
    assert f"./grafana/variants.json:{folder}/variants.json:ro" in services["grafana"]["volumes"]
    source = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8")
    )
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    target = yaml.safe_load((DEPLOY / "prometheus/compose-target.yaml").read_text("utf-8"))
    assert target == [{"targets": ["server:9464"]}]
    published = [port for service in services.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_release_workflow_keeps_to_its_schema() -> None:
    """By the schema of GitHub's workflows."""
    workflow = ROOT / ".github" / "workflows" / "release.yaml"
    said = judged("check-jsonschema", "--builtin-schema", "vendor.github-workflows", workflow)
    assert said.returncode == 0, said.stdout


def test_the_dockerfile_has_no_findings() -> None:
    """DL3008, DL3013 and the like are about pins: ours are in constraints.txt."""
    said = judged("hadolint", "--ignore", "DL3013", "--ignore", "DL3042", ROOT / "Dockerfile")
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("folder", ["base", "canary", "monitoring"])
def test_a_kustomization_names_what_is_there(folder: str) -> None:
    """Its resources and files; and nothing lies beside it that nobody applies."""
    place = KUBERNETES / folder
    content = yaml.safe_load((place / "kustomization.yaml").read_text(encoding="utf-8"))
    generated = [name for each in content.get("configMapGenerator", []) for name in each["files"]]
    named = [*content["resources"], *generated]
    assert all((place / name).exists() for name in named)
    beside = {path.name for path in place.glob("*.yaml")} - {"kustomization.yaml"}
    # Values of another project's chart.
    assert beside - {"prometheus-adapter.yaml"} == {name for name in named if name.endswith("yaml")}


@pytest.mark.parametrize("folder", ["base", "canary"])
def test_the_config_is_one_that_the_server_takes(folder: str) -> None:
    """With the environment that the pod gives it."""
    given = {each["name"]: "secret" for each in container(one("Deployment"))["env"]}
    given["INFERENCE_UNLIMITED_SERVER__HOST"] = "0.0.0.0"  # noqa: S104 - as the image sets it
    config = load(KUBERNETES / folder / "config.yaml", environment=given, flags={})
    assert [token.env for token in config.server.tokens] == ["APP_TOKEN"]
    if folder == "canary":
        assert config.traffic["int4"] / sum(config.traffic.values()) == 0.05


def test_everything_that_selects_servers_selects_them() -> None:
    """Services, policies and monitors by labels that the pods have, ports by names they have."""
    deployment = one("Deployment")
    template = deployment["spec"]["template"]
    assert template["metadata"]["labels"] == LABELS
    monitor = next(content for _, content in objects() if content["kind"] == "ServiceMonitor")
    headless = one("Service")
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        headless["spec"]["selector"],
        one("Service", "inference-unlimited-http")["spec"]["selector"],
        one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one("NetworkPolicy", "inference-unlimited-server")["spec"]["podSelector"]["matchLabels"],
        monitor["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector == LABELS for selector in selectors)
    assert headless["spec"]["clusterIP"] == "None"
    ports = {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}
    assert ports == {"grpc": 50051, "http": 8000, "ops": 9464}
    asked = [each["targetPort"] for each in headless["spec"]["ports"]]
    asked += [
        port["port"]
        for rule in one("NetworkPolicy", "inference-unlimited-server")["spec"]["ingress"]
        for port in rule["ports"]
    ]
    names = ("startup", "readiness", "liveness")
    probes = [container(deployment)[f"{name}Probe"] for name in names]
    asked += [probe["httpGet"]["port"] for probe in probes]
    assert set(asked) == set(ports)
    assert [probe["httpGet"]["path"] for probe in probes] == ["/healthz", "/healthz", "/livez"]
    assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {
        each["name"] for each in headless["spec"]["ports"]
    }
    scaled = one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", deployment["metadata"]["name"])


def test_pods_end_after_their_streams() -> None:
    """Killed before their drain is over, they would cut streams that may still run."""
    pod = one("Deployment")["spec"]["template"]["spec"]
    pause = container(one("Deployment"))["lifecycle"]["preStop"]["sleep"]["seconds"]
    config = load(BASE / "config.yaml", environment={"APP_TOKEN": "secret"}, flags={})
    assert pod["terminationGracePeriodSeconds"] > pause + config.server.drain_seconds


@pytest.mark.parametrize(
    "workload", [("Deployment", "inference-unlimited"), ("Job", "inference-unlimited-build")]
)
def test_pods_have_no_rights(workload: tuple[str, str]) -> None:
    """A user without rights, a file system that is read-only apart from what is mounted."""
    pod = one(*workload)["spec"]["template"]["spec"]
    inside = container(one(*workload))
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    # Services are named as our variables begin.
    assert not pod["enableServiceLinks"]
    assert inside["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    store = next(each for each in inside["volumeMounts"] if each["name"] == "store")
    assert store.get("readOnly", False) is (workload[0] == "Deployment")


def test_the_metric_that_scales_is_one_that_we_have() -> None:
    """Under one name in the autoscaler, in the adapter's rule, and in the documentation."""
    (metric,) = one("HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name == "inference_server_waiting_requests"
    adapter = (KUBERNETES / "monitoring" / "prometheus-adapter.yaml").read_text(encoding="utf-8")
    (rule,) = yaml.safe_load(adapter)["rules"]["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert name in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
