"""The ``tokenizer.json`` of a model folder, made from the older files where it is missing.

Knows nothing of serving's tokenizer (``artifacts.tokenizer``), which reads the same file.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from optimizers.errors import SourceError


def tokenizer_bytes(folder: Path) -> bytes:
    """Give ``tokenizer.json``: the folder's own, or converted by transformers.

    Raises:
        SourceError: The folder has no tokenizer that can be converted.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        return path.read_bytes()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer.save_pretrained(scratch)
            return (Path(scratch) / "tokenizer.json").read_bytes()
    except Exception as error:  # conversions fail in as many ways as there are tokenizers
        raise SourceError(
            f"{folder.name} has no tokenizer.json and none can be made of its files: {error}",
            path="model",
            remedy="Write one with transformers: AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(folder).",
        ) from error


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """Parse a folder's ``tokenizer.json``."""
    content: dict[str, Any] = json.loads(tokenizer_bytes(folder))
    return content


def load_tokenizer(folder: Path) -> Any:
    """Give a folder's ``tokenizers.Tokenizer``, truncating and padding nothing."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_bytes(folder).decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
