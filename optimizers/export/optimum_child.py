"""Runs Optimum's exporter; executed by an interpreter of its own, never imported.

Usage: ``python optimum_child.py MODEL_FOLDER OUT_FOLDER``. It needs optimum-onnx and its
transformers 4, and nothing of this project. It exits when its standard input is closed, which the
kernel does even for a parent that was killed.
"""

from __future__ import annotations

import os
import sys
import threading

_ORPHANED = 75  # EX_TEMPFAIL of sysexits.h, as the optimizer's own children say it


def main() -> None:
    """Write ``OUT_FOLDER/model.onnx`` in Optimum's form with past key values."""
    threading.Thread(target=_exit_when_closed, name="stdin-watch", daemon=True).start()
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


def _exit_when_closed() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(_ORPHANED)


if __name__ == "__main__":
    main()
