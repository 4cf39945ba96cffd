"""How fast this machine reads memory, and how much of it one decoded token reads.

Owns both figures; their ratio over the time of a token says how near decoding is to the limit that
memory sets. Knows nothing of turns.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_BYTES = 1 << 30  # far more than any cache
_ATTEMPTS = 5
_PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "MatMulNBits", "MatMulIntegerToFloat"}
_WEIGHT = 1  # place among inputs: the weight; what belongs to it follows


def read_bandwidth(threads: int, size: int = _BYTES) -> float:
    """Bytes per second that threads read together, the best of a few attempts.

    Each goes through its part of one array once, in a dot product of it with itself.
    """
    array = np.ones(size // 4, np.float32)
    parts = np.array_split(array, threads)

    def read(part: np.ndarray) -> float:
        return float(sum(np.dot(chunk, chunk) for chunk in np.array_split(part, 64)))

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ATTEMPTS):
            began = time.perf_counter()
            list(pool.map(read, parts))
            best = max(best, array.nbytes / (time.perf_counter() - began))
    return best


def bytes_per_token(model: Path) -> int:
    """Bytes of the weights that every product of a graph reads for one row.

    Args:
        model: An ONNX file; of its weights only the sizes are read.
    """
    return sum(size for _, size in products(model).values())


def products(model: Path) -> dict[str, tuple[str, int]]:
    """Of each product of a graph by its node's name: the shape of its weights, and their bytes.

    Args:
        model: An ONNX file; of its weights only the sizes are read.
    """
    import onnx_ir

    found = {}
    for node in onnx_ir.load(model).graph:
        if node.op_type in _PRODUCTS:
            size = sum(_bytes(value) for value in node.inputs[_WEIGHT:] if value is not None)
            found[node.name] = (_shape(node), size)
    return found


def _shape(node: Any) -> str:
    """K x N, where N outputs are computed of K inputs."""
    if node.op_type == "MatMulNBits":
        sizes: Any = (node.attributes.get_int("K"), node.attributes.get_int("N"))
    else:
        sizes = node.inputs[_WEIGHT].shape
    return " x ".join(str(size) for size in sizes)


def _bytes(value: Any) -> int:
    producer = value.producer()
    constant = value if producer is None else producer.inputs[0]  # a table, reshaped for a head
    return int(constant.const_value.nbytes) if constant.is_initializer() else 0
