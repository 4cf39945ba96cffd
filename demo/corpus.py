"""The demo model's text: which standard-library files are used, how they are split and dressed.

Owns the choice of files, the train/held-out split, and the three kinds of training documents
(whole files, single functions, chat turns). Knows nothing about tokens, models or training.

Run as a script it writes `heldout.jsonl` and `calibration.jsonl` beside itself.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
import textwrap
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HELD_OUT_PER_MILLE = 30
EXCERPT_CHARS = 6000
HELD_OUT_EXCERPTS = 48
CALIBRATION_EXCERPTS = 32

# Vendored code, generated tables and deliberately odd inputs teach a small model nothing useful.
SKIPPED_FOLDERS = frozenset(
    {
        "site-packages",
        "encodings",
        "pydoc_data",
        "__pycache__",
        "lib-dynload",
        "encoded_modules",
        "cjkencodings",
        "data",
        "tracedmodules",
    }
)
SKIPPED_PREFIXES = ("_sysconfigdata", "config-", "html/entities.py", "test/bad")
MAX_DIGIT_SHARE = 0.10
MIN_CHARS = 200
FUNCTION_CHARS = (120, 3000)

EOT = "<|endoftext|>"
PAD = "<|pad|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"
SPECIAL_TOKENS = (EOT, PAD, SYSTEM, USER, ASSISTANT, END)


@dataclass(frozen=True)
class Document:
    """One source file: its path relative to the standard library, and its text."""

    source: str
    text: str

    @property
    def is_test(self) -> bool:
        """Whether the file belongs to a test package rather than to ordinary library code."""
        return any(part in {"test", "tests", "idle_test"} for part in self.source.split("/"))

    @property
    def held_out(self) -> bool:
        """Whether the file is kept away from training."""
        return rank(self.source) % 1000 < HELD_OUT_PER_MILLE


def rank(key: str) -> int:
    """Return a fixed pseudo-random 64-bit number for `key`, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def parse(text: str) -> ast.Module | None:
    """Return the syntax tree of `text`, or None when it is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


@cache
def documents() -> tuple[Document, ...]:
    """Return every usable standard-library file, sorted by relative path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        source = relative.as_posix()
        if SKIPPED_FOLDERS.intersection(relative.parts) or source.startswith(SKIPPED_PREFIXES):
            continue
        try:
            text = file.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        digits = sum(map(text.count, "0123456789"))
        if len(text) < MIN_CHARS or digits > MAX_DIGIT_SHARE * len(text) or parse(text) is None:
            continue
        found.append(Document(source, text))
    return tuple(found)


def train_documents() -> list[Document]:
    """Return the files used for training."""
    return [document for document in documents() if not document.held_out]


def heldout_documents() -> list[Document]:
    """Return the files never seen in training."""
    return [document for document in documents() if document.held_out]


def functions(document: Document) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Yield each function or method of moderate size with its source, moved to column 0."""
    tree = parse(document.text)
    lines = document.text.splitlines(keepends=True)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            text = textwrap.dedent("".join(lines[first - 1 : node.end_lineno]))
            if FUNCTION_CHARS[0] <= len(text) <= FUNCTION_CHARS[1] and text[0] in "d@":
                yield node, text


def chat(node: ast.FunctionDef, source: str) -> str | None:
    """Dress a function as a chat turn asking for it, or return None where it has no docstring."""
    docstring = ast.get_docstring(node)
    if not docstring:
        return None
    summary = " ".join(docstring.split("\n\n")[0].split())
    signature = f"def {node.name}({ast.unparse(node.args)})"
    requests = (
        f"{summary}",
        f"Write `{signature}`. {summary}",
        f"Write a function `{node.name}`: {summary}",
        f"{signature}:\n{summary}",
    )
    request = requests[rank(source) % len(requests)]
    return f"{USER}{request}{END}{ASSISTANT}{source.rstrip()}{END}"


def excerpts(pool: list[Document], count: int) -> list[dict[str, str]]:
    """Return `count` excerpts of at most EXCERPT_CHARS characters, one per document.

    Library files come first, so that the excerpts look like code people write, not like tests.
    Long files are cut at a line end, from the start.
    """
    chosen = sorted(pool, key=lambda document: (document.is_test, rank("x" + document.source)))
    rows = []
    for document in chosen[:count]:
        text = document.text[:EXCERPT_CHARS]
        if len(document.text) > EXCERPT_CHARS:
            text = text[: text.rindex("\n") + 1]
        rows.append({"text": text, "source": document.source})
    return rows


def write_excerpts(folder: Path) -> None:
    """Write `heldout.jsonl` and `calibration.jsonl` into `folder`."""
    for name, pool, count in (
        ("heldout.jsonl", heldout_documents(), HELD_OUT_EXCERPTS),
        ("calibration.jsonl", train_documents(), CALIBRATION_EXCERPTS),
    ):
        rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in excerpts(pool, count)]
        (folder / name).write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    write_excerpts(Path(__file__).resolve().parent)
