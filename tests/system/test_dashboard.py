"""The dashboard on a real server's figures: load, a split, a shadow and errors, and every panel."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from protos import inference_pb2 as pb
from server.comparison.server_process import ROOT, ServerProcess
from tests.system.prometheus import SCRAPE_S, get, keep_busy, scraping

pytestmark = pytest.mark.system

BOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "variants.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
VARIABLES = {one["name"]: one for one in BOARD["templating"]["list"]}
LOAD_S = 12.0
WIDTH = 24
# Grafana's: a step and a scrape, and at least four scrapes; a step is 1 s on half an hour here.
RATE_INTERVAL = f"{max(1 + SCRAPE_S, 4 * SCRAPE_S)}s"


@dataclass(frozen=True)
class Provoked:
    """A Prometheus, and when what it has seen began and ended."""

    url: str
    start_s: float
    end_s: float


@pytest.fixture(scope="module")
def server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(
        None,
        stderr=tmp_path_factory.mktemp("server") / "server.log",
        environment={
            "INFERENCE_UNLIMITED_STORE": str(demo_store),
            # The text that the store's figures are of, so that the budget is judged at once.
            "INFERENCE_UNLIMITED_EVALUATION__TEXT": str(demo_store.with_name("few.jsonl")),
            "INFERENCE_UNLIMITED_BUDGET__KL_MEAN": "1000",
        },
    ) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def provoked(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provoked]:
    with scraping(server, tmp_path_factory.mktemp("prometheus")) as url:
        start_s = time.time()
        with grpc.insecure_channel(server.target) as channel:
            split_and_shadow(channel)
            keep_busy(server, {"", "baseline", "int4"}, LOAD_S / 2)
            refuse_some(channel)
            keep_busy(server, {"", "int8"}, LOAD_S / 2)
        time.sleep(2 * SCRAPE_S)
        yield Provoked(url, start_s, time.time())


def split_and_shadow(channel: grpc.Channel) -> None:
    stub: Any = admin_pb2_grpc.AdminStub(channel)
    stub.SetTraffic(
        admin_pb2.SetTrafficRequest(
            weights={"baseline": 1, "int8": 1},
            shadow=admin_pb2.Shadow(candidate="int4", fraction=1.0),
        ),
        timeout=30,
    )


def refuse_some(channel: grpc.Channel) -> None:
    stub: Any = inference_pb2_grpc.InferenceStub(channel)
    for variant in ("int8", "nobody"):
        with pytest.raises(grpc.RpcError):
            stub.Complete(pb.GenerateRequest(variant=variant, text=""), timeout=30)


def filled(query: str, **values: str) -> str:
    """A query as Grafana sends it; what it would not know is left, and Prometheus refuses it."""
    everything = {name: one.get("allValue", "") for name, one in VARIABLES.items()}
    known = {"__rate_interval": RATE_INTERVAL, **everything, **values}
    return re.sub(r"\$(\w+)", lambda found: known.get(found[1], found[0]), query)


def labels_and_values(at: Provoked, query: str) -> list[tuple[Mapping[str, str], list[float]]]:
    """Each series of a query with its finite values while things were provoked."""
    matrix = get(
        at.url, "query_range", query=query, start=str(at.start_s), end=str(at.end_s), step="1"
    )["result"]
    found = [(one["metric"], [float(value) for _, value in one["values"]]) for one in matrix]
    return [(labels, [one for one in values if math.isfinite(one)]) for labels, values in found]


QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel["targets"]
}


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_returns_data(provoked: Provoked, name: str) -> None:
    """Of some variant at some time; a series of nothing but NaN is no data."""
    found = labels_and_values(provoked, filled(QUERIES[name]))
    assert any(values for _, values in found), filled(QUERIES[name])
    of_none = name == "Requests by status B"
    assert all(("variant" in labels) != of_none for labels, _ in found)


def test_a_query_for_a_missing_family_would_return_none(provoked: Provoked) -> None:
    """The check above can fail, also for a variable that the dashboard lacks."""
    planted = QUERIES["Share of the engine A"].replace("engine_seconds", "no_such_seconds")
    assert labels_and_values(provoked, filled(planted)) == []
    assert labels_and_values(provoked, 'up{job=~"$job"}') == []


def test_the_comparison_shows_every_variant_in_every_column(provoked: Provoked) -> None:
    """A cell that is empty compares nothing; the shadow's candidate was also asked by name."""
    (table,) = [panel for panel in PANELS if panel["title"] == "Variants compared"]
    split = {"Value #A": {"baseline", "int8"}}
    for target in table["targets"]:
        found = labels_and_values(provoked, filled(target["expr"]))
        variants = {labels["variant"] for labels, values in found if values}
        assert variants == split.get(target["refId"], {"baseline", "int8", "int4"})


def test_panels_show_what_was_provoked(provoked: Provoked) -> None:
    """The split in shares, errors as such, and the shadow's pair."""

    def last(name: str, **labels: str) -> list[float]:
        found = labels_and_values(provoked, filled(QUERIES[name]))
        return [values[-1] for one, values in found if values and labels.items() <= one.items()]

    assert last("Share of traffic A", variant="baseline") == [0.5]
    assert last("Share of traffic A", variant="int8") == [0.5]
    assert last("Within budget A", variant="int4") == [1.0]
    statuses = {
        labels["status"]
        for labels, values in labels_and_values(provoked, filled(QUERIES["Requests by status A"]))
        if values
    }
    assert {"ok", "invalid_argument"} <= statuses
    assert last("Requests by status B", status="not_found")
    errors = {
        labels["variant"]: max(values)
        for labels, values in labels_and_values(provoked, filled(QUERIES["Errors A"]))
        if values
    }
    assert errors["int8"] > 0
    assert errors["baseline"] == 0
    (agreement,) = last("Same token likeliest as the serving variant A", serving="baseline")
    assert 0.2 < agreement <= 1
    pairs = labels_and_values(provoked, filled(QUERIES["Divergence, at least A"]))
    assert {(labels["variant"], labels["serving"]) for labels, _ in pairs} == {
        ("int4", "baseline"),
        ("int4", "int8"),
    }


def test_variables_have_values_and_select(provoked: Provoked, server: ServerProcess) -> None:
    """What can be chosen is what there is, and a choice leaves out the others."""
    host = server.metrics_url.split("/")[2]
    expected = {
        "model": {"demo"},
        "variant": {"baseline", "int8", "int4"},
        "instance": {host},
    }
    found = {}
    for name in set(VARIABLES) - {"datasource"}:
        asked = VARIABLES[name]["query"]["query"]
        parts = re.fullmatch(r"label_values\((.+), (\w+)\)", asked)
        assert parts is not None
        series = filled(parts[1])
        found[name] = set(get(provoked.url, f"label/{parts[2]}/values", **{"match[]": series}))
    assert found == expected
    for name, query in QUERIES.items():
        series = labels_and_values(provoked, filled(query, variant="int4"))
        assert {labels.get("variant", "int4") for labels, _ in series} <= {"int4"}, name
        assert not labels_and_values(provoked, filled(query, model="another")), name


def test_ids_are_unique_and_nothing_overlaps() -> None:
    """Grafana would move or drop what does; every row of the grid is used from its left."""
    panels = BOARD["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    places = [(panel["title"], panel["gridPos"]) for panel in panels]
    for _, place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= WIDTH
        assert place["h"] > 0 < place["w"]
    for (one, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (one, other)


def test_every_panel_says_what_it_shows_and_where_from() -> None:
    """A title, a sentence, a unit, distinct queries, and the data source that was chosen."""
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert VARIABLES["datasource"]["query"] == "prometheus"
    assert {one["datasource"]["uid"] for one in VARIABLES.values() if "datasource" in one} == {
        chosen["uid"]
    }
    titles = [panel["title"] for panel in PANELS]
    assert len(titles) == len(set(titles))
    for panel in PANELS:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == chosen
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)) > 0
        for target in panel["targets"]:
            assert target["datasource"] == chosen
            assert bool(target["legendFormat"]) != (panel["type"] == "table")
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used <= {"__rate_interval", *VARIABLES}
            assert {"model", "instance"} <= used


def test_columns_of_tables_have_names() -> None:
    """Every value of the comparison is renamed, and every name has a unit."""
    (table,) = [panel for panel in PANELS if panel["title"] == "Variants compared"]
    (names,) = [
        one["options"]["renameByName"]
        for one in table["transformations"]
        if one["id"] == "organize"
    ]
    values = {f"Value #{target['refId']}" for target in table["targets"]}
    assert set(names) == {"variant", *values}
    units = {
        override["matcher"]["options"]: {one["id"]: one["value"] for one in override["properties"]}
        for override in table["fieldConfig"]["overrides"]
    }
    assert set(units) == set(names.values()) - {"Variant"}
    assert all(properties["unit"] for properties in units.values())
