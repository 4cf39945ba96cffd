"""How fast memory is read, and what one token reads of it."""

from __future__ import annotations

from pathlib import Path

from artifacts.manifest import GraphSpec
from benchmarks.bandwidth import bytes_per_token, read_bandwidth
from tests.optimizers.onnx_stage import run_stage

HIDDEN, VOCABULARY = 64, 256


def test_memory_is_read_at_some_rate() -> None:
    """Bytes per second, by any number of threads."""
    assert all(1e8 < read_bandwidth(threads, 1 << 24) < 1e13 for threads in (1, 2))


def test_a_token_reads_all_products_and_no_table(
    tiny_llama_export: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    """Scales and zero points included; the head too, also where it shares the embeddings' bytes."""
    model, _ = tiny_llama_export
    run_stage({"method": "weight_only", "block_size": 32}, *tiny_llama_export, tmp_path)
    whole = bytes_per_token(model)
    few = bytes_per_token(tmp_path / "model.onnx")
    head = VOCABULARY * HIDDEN
    products = (whole - 4 * head) // 4
    # 4 bits, and 5 bytes of scale and zero point for 32; at 8 bits, as the head is, 5 for 32 too.
    expected = products * (0.5 + 4.5 / 32) + head * (1 + 5 / 32)
    assert abs(few - expected) < 0.02 * expected
