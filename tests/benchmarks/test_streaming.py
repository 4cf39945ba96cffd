"""The streaming bench judges what it measured, and sees what processes and files take up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.footprint import Footprint
from benchmarks.shapes import SHAPES, make_model
from benchmarks.streaming import Round, _bars

MIB = 1 << 20
# 64 MiB that are touched, a file of 8 MiB that goes and one of 1 MiB that stays.
PROGRAM = """
import pathlib, sys, time
held = bytearray(64 << 20)
folder = pathlib.Path(sys.argv[1])
(folder / "draft").write_bytes(b"x" * (8 << 20))
(folder / "kept" / "blob").write_bytes(b"x" * (1 << 20))
time.sleep(0.5)
(folder / "draft").unlink()
time.sleep(60)
"""


def test_memory_and_files_of_a_child_are_seen(tmp_path: Path) -> None:
    """Also a file that is gone in the end; what is kept is somebody else's figure."""
    (tmp_path / "kept").mkdir()
    # Called like an optimizer child, whose last word says what it does.
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "optimizers", "build"]
    child = subprocess.Popen(command)
    try:
        with Footprint(os.getpid(), tmp_path) as seen:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                if (tmp_path / "kept" / "blob").exists() and not (tmp_path / "draft").exists():
                    break
                time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    assert seen.peaks["build"] > 64 * MIB
    assert seen.together > seen.peaks["build"]
    assert seen.largest_file(but=tmp_path / "kept") == 8 * MIB


@pytest.mark.parametrize(
    ("seconds", "peak", "kept"),
    [
        ([10, 14.9, 40], 149, [True, True]),
        ([10, 15.0, 40], 149, [False, True]),
        ([1, 1, 1], 150, [True, False]),
    ],
)
def test_bars_are_the_median_of_seconds_and_the_worst_of_memory(
    seconds: list[float], peak: int, kept: list[bool]
) -> None:
    """A disturbed round does not count for seconds; memory is what has to be there."""
    rounds = [
        Round(
            first_token_s=one,
            steps_s={},
            peak_bytes={"server": 10, "build": peak if index == 0 else 20},
            together_bytes=0,
            artifact_bytes=0,
            other_file_bytes=0,
        )
        for index, one in enumerate(seconds)
    ]
    assert [bar.is_kept for bar in _bars(rounds, half_bytes=100)] == kept


def test_a_shape_can_have_weights_of_half_precision(tmp_path: Path) -> None:
    """In a folder of their own: both are kept."""
    tiny = SHAPES["tiny"]
    folders = [make_model(tmp_path, tiny, dtype="float16"), make_model(tmp_path, tiny)]
    types = [
        {str(tensor.dtype) for tensor in load_file(folder / "model.safetensors").values()}
        for folder in folders
    ]
    assert types == [{"float16"}, {"float32"}]
    half, whole = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(np.allclose(half[name], whole[name], atol=1e-3) for name in whole)
