"""The blocks of a quantized matrix as weights that are made when they are written.

Owns which tensors stand for them. Knows nothing of operators, or of how blocks are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import BugError
from optimizers.block_quantization import Blocks, Form, Part
from optimizers.lazy_weights import MadeTogether, add_lazy_weight


@dataclass(slots=True)
class LazyBlocks:
    """Blocks of a known form.

    Attributes:
        form: What they will look like.
        make: Makes them.
    """

    form: Form
    make: Callable[[], Blocks]
    _parts: MadeTogether = field(init=False)

    def __post_init__(self) -> None:
        self._parts = MadeTogether(self._make_parts)

    def add(self, model: Any, name: str, part: Part, *, flat: bool = False) -> Any:
        """Add a part as an initializer; ``flat``: a row's bytes are one dimension."""
        import onnx_ir

        rows, *dims = self.form.shape(part)
        shape = (rows, int(np.prod(dims))) if flat else (rows, *dims)
        dtype = onnx_ir.DataType.FLOAT if part == "scales" else onnx_ir.DataType.UINT8
        return add_lazy_weight(model, name, lambda: self._parts.read(part), shape, dtype)

    def _make_parts(self) -> dict[str, NDArray[Any]]:
        blocks = self.make()
        found: dict[str, Any] = {part: getattr(blocks, part) for part in self.form.parts}
        if missing := [part for part, array in found.items() if array is None]:
            raise BugError(f"Blocks were made without the {missing[0]} that they should have.")
        return found
