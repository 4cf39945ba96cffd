"""Everything that a run found out, as one value that can be written and read again.

Knows nothing of tables.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.samples import Measure, Sample, Samples
from benchmarks.settings import Settings
from server.comparison.machine import Machine


@dataclass(frozen=True, slots=True)
class Results:
    """One run.

    Attributes:
        created: When it began, ISO 8601.
        machine: Where.
        settings: What was asked of everybody.
        shape: Name of the model's shape.
        parameters: How many weights it has.
        versions: Libraries of each peer.
        variants: What our server says of each variant: artifact, size, quality.
        agreement: Of each float32 contender, how many leading tokens are as the reference's.
        agreement_wanted: How many tokens were compared.
        failures: Of contenders that were left out, why.
        samples: All figures.
    """

    created: str
    machine: Machine
    settings: Settings
    shape: str
    parameters: int
    versions: dict[str, dict[str, str]]
    variants: dict[str, dict[str, Any]]
    agreement: dict[str, int]
    agreement_wanted: int
    failures: dict[str, str]
    samples: Samples

    def write(self, path: Path) -> None:
        """Write as JSON."""
        content = {name: getattr(self, name) for name in self.__slots__}
        content |= {
            "machine": asdict(self.machine),
            "settings": asdict(self.settings),
            "samples": [asdict(sample) for sample in self.samples],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))


def read_results(path: Path) -> Results:
    """Read what ``Results.write`` wrote."""
    content = json.loads(path.read_text())
    machine = content["machine"] | {"flags": tuple(content["machine"]["flags"])}
    samples = [
        Sample(**{**sample, "measure": Measure(sample["measure"])}) for sample in content["samples"]
    ]
    return Results(
        **{
            **content,
            "machine": Machine(**machine),
            "settings": Settings(**content["settings"]),
            "samples": Samples(samples),
        }
    )
