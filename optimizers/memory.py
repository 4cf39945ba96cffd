"""Whether a build fits into memory, told before anything is loaded.

Owns the estimate, from the weights' headers and the config alone, and the refusal. An estimate is a
floor with little above it, since what would just fit must not be refused: activations are left out,
and so are mapped files, which the system can take back. Knows nothing of any one stage, which says
itself what it holds.

Measured peaks of anonymous memory, and estimates, of builds with weight_only in MiB: the demo
(5 million parameters) 393, 351; 33 million 591, 580; 117 million 1,205, 1,220. With sparsegpt, 33
million 1,116, 580, since its text flows through the layers at once. Streamed, 494 million of which
136 are one matrix: 602, 560.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artifacts.machine import available_memory_bytes
from optimizers.errors import MemoryLimitError
from optimizers.json_file import read_object
from optimizers.model_folder import CONFIG, weights_files
from optimizers.stage import FLOAT_BYTES, Stage
from optimizers.weights_file import count_parameters, largest_tensor

_PROCESS = 300 << 20  # bytes of torch, transformers and the exporter, without any model
_EXPORT_COPIES = 2  # of the weights in float32, such as the module's and the packed ones'
_STREAMED_BYTES = 2  # of a weight of the largest matrix: as 8-bit blocks, and what becomes of it
_LOGITS = 256 * 3  # positions whose logits are scored together, and what is made of them
_MIB = 1 << 20


def estimated_bytes(folder: Path, stages: Sequence[Stage]) -> int:
    """Bytes that a build holds at its peak, from the folder of the model that it begins with."""
    return max([_export_bytes(folder), *(_stage_bytes(folder, stage) for stage in stages)])


def streamed_bytes(folder: Path) -> int:
    """The same of a build that is streamed, and holds one matrix at a time."""
    largest = max(largest_tensor(path) for path in weights_files(folder))
    return _PROCESS + _STREAMED_BYTES * largest


def check_streamed_memory(folder: Path, root: Path = Path("/")) -> None:
    """Refuse a build that cannot fit though it is streamed.

    Args:
        folder: The model that the chain begins with, checked.
        root: Below which the machine tells what it has.

    Raises:
        MemoryLimitError: At the model.
    """
    available = available_memory_bytes(root)
    if (needed := streamed_bytes(folder)) > available:
        raise _refusal(needed, available, "model")


def check_memory(folder: Path, stages: Sequence[Stage], path: str, root: Path = Path("/")) -> None:
    """Refuse a build that cannot fit.

    Args:
        folder: The model that the chain begins with, checked.
        stages: The chain.
        path: Of the chain in the config, for the message.
        root: Below which the machine tells what it has.

    Raises:
        MemoryLimitError: At the stage that alone does not fit, or at the model.
    """
    available = available_memory_bytes(root)
    if estimated_bytes(folder, stages) <= available:
        return
    export = _export_bytes(folder)
    needed, where = export, "model"
    if export <= available:  # then it is a stage
        costs = [_stage_bytes(folder, stage) for stage in stages]
        needed = max(costs)
        index = costs.index(needed)
        where = f"{path}[{index}].{stages[index].name}"
    raise _refusal(needed, available, where)


def _refusal(needed: int, available: int, where: str) -> MemoryLimitError:
    return MemoryLimitError(
        f"The build would need about {needed // _MIB} MiB of memory, and {available // _MIB} MiB "
        "are available.",
        path=where,
        remedy="Build on a machine (or in a container) with more memory, or choose a smaller "
        "model; the finished artifact can be served with less.",
    )


def _stage_bytes(folder: Path, stage: Stage) -> int:
    return _fixed_bytes(folder) + stage.memory(_parameters(folder))


def _export_bytes(folder: Path) -> int:
    return _fixed_bytes(folder) + _EXPORT_COPIES * FLOAT_BYTES * _parameters(folder)


def _fixed_bytes(folder: Path) -> int:
    config = read_object(folder / CONFIG)
    inner = config.get("text_config")
    vocabulary = (inner if isinstance(inner, dict) else config).get("vocab_size")
    logits = _LOGITS * FLOAT_BYTES * vocabulary if isinstance(vocabulary, int) else 0
    return _PROCESS + logits


def _parameters(folder: Path) -> int:
    return sum(count_parameters(path) for path in weights_files(folder))
