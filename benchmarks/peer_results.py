"""Everything that one run against peers found out, and what may be compared with what.

Knows nothing of tables and of how figures were taken.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.ours import Weights
from benchmarks.peer_lineup import REPRODUCIBLE, RUNGS, as_good
from benchmarks.poisson import LoadPoint
from benchmarks.samples import Measure, Sample, Samples, Spread
from benchmarks.settings import Settings
from server.comparison.machine import Machine


@dataclass(frozen=True, slots=True)
class PeerResults:
    """One run on one shape.

    Attributes:
        created: When it began, ISO 8601.
        machine: Where.
        settings: What was asked of everybody.
        shape: Name of the model's shape.
        parameters: How many weights it has.
        versions: Libraries of each peer.
        quality: By name, KL to float32 on the demo model, in nats.
        capacities: By name, requests per second of those that were put under load.
        loads: What users saw under load.
        failures: Of those that were left out, why.
        samples: All other figures.
    """

    created: str
    machine: Machine
    settings: Settings
    shape: str
    parameters: int
    versions: dict[str, dict[str, str]]
    quality: dict[str, float]
    weights: dict[str, Weights]
    capacities: dict[str, float]
    loads: list[LoadPoint]
    failures: dict[str, str]
    samples: Samples

    def write(self, path: Path) -> None:
        """Write as JSON."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content |= {
            "machine": asdict(self.machine),
            "settings": asdict(self.settings),
            "weights": {name: asdict(sizes) for name, sizes in self.weights.items()},
            "loads": [asdict(load) for load in self.loads],
            "samples": [asdict(sample) for sample in self.samples],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))

    def comparable(self, ours: str, rung: str) -> bool:
        """Whether a row of ours is as good as a rung, so that their speeds may be compared."""
        if ours not in self.quality or rung not in self.quality:
            return False
        return as_good(self.quality[ours], self.quality[rung])

    def best(self, measure: Measure, ours: str) -> tuple[str, Spread] | None:
        """The comparable rung that a figure is hardest to beat of, and our ratio over it.

        None where there is none, or nothing was measured.
        """
        found: list[tuple[float, str, Spread]] = []
        for rung in RUNGS:
            if self.comparable(ours, rung):
                ratio = self.samples.ratio(measure, ours, rung)
                if ratio is not None:
                    found.append((ratio.median, rung, ratio))
        if not found:
            return None
        _, rung, ratio = min(found, key=lambda one: one[0])
        return rung, ratio

    def unmatched(self) -> list[str]:
        """The rungs that no reproducible row is as good as."""
        return [
            rung
            for rung in RUNGS
            if rung in self.quality
            and not any(self.comparable(ours, rung) for ours in REPRODUCIBLE)
        ]

    def hardest(self, measure: Measure) -> tuple[str, str, Spread] | None:
        """The rung that we stand worst against, with the row of ours that does best there.

        A rung that no measured row is as good as does not count (``unmatched``).
        """
        found: list[tuple[float, str, str, Spread]] = []
        for rung in RUNGS:
            rows = [
                (ratio.median, ours, ratio)
                for ours in REPRODUCIBLE
                if self.comparable(ours, rung)
                and (ratio := self.samples.ratio(measure, ours, rung)) is not None
            ]
            if rows:
                median, ours, ratio = max(rows, key=lambda row: row[0])
                found.append((median, ours, rung, ratio))
        if not found:
            return None
        _, ours, rung, ratio = min(found, key=lambda one: one[0])
        return ours, rung, ratio


def read_results(path: Path) -> PeerResults:
    """Read what ``PeerResults.write`` wrote."""
    content = json.loads(path.read_text())
    machine = content["machine"] | {"flags": tuple(content["machine"]["flags"])}
    samples = [Sample(**{**one, "measure": Measure(one["measure"])}) for one in content["samples"]]
    return PeerResults(
        **{
            **content,
            "machine": Machine(**machine),
            "settings": Settings(**content["settings"]),
            "weights": {name: Weights(**one) for name, one in content["weights"].items()},
            "loads": [LoadPoint(**load) for load in content["loads"]],
            "samples": Samples(samples),
        }
    )
