"""The embedded demo model: a tiny Python-code language model that ships with the project.

Owns the model folder `demo/model`, the held-out and calibration excerpts beside it, and the scripts
that made them. Knows nothing about serving: any loader of Hugging Face Llama folders can use it.
Importing this package loads nothing heavy.
"""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """Return the absolute path of the demo model's folder."""
    return Path(__file__).resolve().parent / "model"
