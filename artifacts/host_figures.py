"""What was measured of an artifact on one machine: speeds, and intervals of its quality.

Owns the value and where it lies: ``hosts/<machine>/<artifact>/speed.json``, apart from the
manifest, since another machine has other figures. Optional and rebuildable: whatever cannot be
read is as if it were not there. Knows nothing of how figures are taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import Literal

from pydantic import ValidationError

from artifacts.digest import is_sha256, write_atomically
from artifacts.layout import Layout, storing
from artifacts.manifest import Frozen, canonical_json

_LARGEST_BYTES = 1 << 18
_NAME = "speed.json"


class Host(Frozen):
    """What speed depends on besides the artifact."""

    processor: str
    isa: str
    cores: int
    onnxruntime: str

    @property
    def key(self) -> str:
        """Name of its folder: readable, with a digest of all of it."""
        digest = hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()
        readable = f"{self.isa}-{self.cores}-ort{self.onnxruntime}"
        return f"{re.sub(r'[^A-Za-z0-9._-]', '_', readable)}-{digest[:12]}"


class Figure(Frozen):
    """A value, with the ends of its interval of 95 % where there were enough samples."""

    value: float
    low: float | None = None
    high: float | None = None


class HostFigures(Frozen):
    """One artifact on one machine.

    ``speeds`` and ``quality`` are keyed by measure, units in their names; ``disturbed_rounds`` is
    in how many of ``rounds`` others used the machine.
    """

    format: Literal[1] = 1
    host: Host
    measured: str
    rounds: int
    disturbed_rounds: int
    speeds: dict[str, Figure]
    quality: dict[str, Figure]


def write_figures(layout: Layout, artifact: str, figures: HostFigures) -> None:
    """Keep figures, in place of earlier ones of the same machine.

    Raises:
        StoreError: The store cannot be written.
    """
    path = layout.hosts / figures.host.key / artifact / _NAME
    with storing(layout.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, figures.model_dump_json(indent=1).encode(), scratch=layout.tmp)


def read_figures(layout: Layout, artifact: str, host: Host) -> HostFigures | None:
    """Figures of an artifact on a machine; None when there are none that can be read."""
    if not is_sha256(artifact):
        return None
    path = layout.hosts / host.key / artifact / _NAME
    with contextlib.suppress(OSError, ValidationError):
        if path.stat().st_size <= _LARGEST_BYTES:
            return HostFigures.model_validate_json(path.read_bytes())
    return None
