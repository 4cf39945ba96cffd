"""The weights of a model folder, mapped into memory as torch tensors that take up none.

Owns the mapping of safetensors files, and giving back the pages that were read: else they would
count as this process's memory until the end. Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from optimizers.model_folder import weights_files
from optimizers.weights_file import PREFIX_BYTES

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class MappedWeights:
    """Tensors by name, each a view of a mapped file."""

    tensors: dict[str, torch.Tensor]
    _maps: list[mmap.mmap] = field(default_factory=list)

    def forget(self) -> None:
        """Give back the pages that were read; whoever reads on has them from the system's cache."""
        if any(tensor._version for tensor in self.tensors.values()):  # noqa: SLF001 - no other name
            return  # changed in place, by an exporter: what would be read again is not that
        for one in self._maps:
            one.madvise(mmap.MADV_DONTNEED)


def map_weights(folder: Path) -> MappedWeights:
    """Map all weights of a checked folder; files may be links into a download cache.

    Raises:
        ValueError: A tensor has a type that torch does not know.
    """
    weights = MappedWeights({})
    for path in weights_files(folder):
        with path.open("rb") as file:
            # Private: whoever changes a tensor in place must not change the file.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        weights._maps.append(mapped)  # noqa: SLF001
        weights.tensors.update(_tensors(mapped))
    return weights


def _tensors(mapped: mmap.mmap) -> dict[str, torch.Tensor]:
    begin = PREFIX_BYTES + int.from_bytes(mapped[:PREFIX_BYTES], "little")
    header: dict[str, Any] = json.loads(mapped[PREFIX_BYTES:begin])
    header.pop("__metadata__", None)
    return {name: _tensor(mapped, begin, name, entry) for name, entry in header.items()}


def _tensor(mapped: mmap.mmap, begin: int, name: str, entry: dict[str, Any]) -> torch.Tensor:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"the weight {name} is of the unknown type {entry['dtype']}")
    first, end = entry["data_offsets"]
    if first == end:
        return torch.empty(entry["shape"], dtype=dtype)
    count = (end - first) // dtype.itemsize
    flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=begin + first)
    return flat.reshape(entry["shape"])
