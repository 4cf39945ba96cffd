"""Writes a GGUF file in float32 of a Hugging Face folder, with llama.cpp's own converter.

Run in llama.cpp's environment: ``python -m benchmarks.workers.gguf SOURCE MODEL FILE``. The
converter knows tokenizers by the hash of what they make of a text; ours it cannot know, and is told
that they split as GPT-2's does. Nothing that is compared depends on it: prompts are token ids.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(source: str, model: str, file: str) -> None:
    """Convert a folder.

    Args:
        source: The folder of llama.cpp's source.
        model: The folder of the model.
        file: What to write.
    """
    sys.path.insert(0, str(Path(source, "gguf-py")))
    sys.path.insert(0, source)
    import convert_hf_to_gguf
    from conversion import base

    base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", file, "--outtype", "f32"]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
