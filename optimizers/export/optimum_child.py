"""Runs Optimum's exporter; executed by an interpreter of its own, never imported.

Usage: ``python optimum_child.py MODEL_FOLDER OUT_FOLDER``. It needs optimum-onnx and its
transformers 4, and nothing of this project.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Write ``OUT_FOLDER/model.onnx`` in Optimum's form with past key values."""
    from optimum.exporters.onnx import main_export

    model, out = sys.argv[1:]
    # The result is verified where it is served, against the transformers that is served.
    main_export(
        model,
        output=out,
        task="text-generation-with-past",
        dtype="fp32",
        do_validation=False,
        trust_remote_code=False,
        local_files_only=True,
        no_post_process=False,
    )


if __name__ == "__main__":
    main()
