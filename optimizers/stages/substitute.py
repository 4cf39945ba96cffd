"""``distill: {substitute: MODEL}``: go on with another, smaller model of the same tokenizer.

The cheapest distillation is one that somebody else has done: most families have a small sibling
that was trained on the same data or on the large one's outputs. Owns the check that token ids mean
the same in both. Knows nothing of where models come from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from optimizers.errors import SourceError, StageError
from optimizers.sources import DEMO, local_folder
from optimizers.stage import Outcome, Report, Stage, Work

SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "  Tabs\tand  runs   of    spaces,\r\nline ends\n\n\nand 1234567890 + 3.14159e-10.",
    "Grüße aus Köln — «ça va?» Привет! 你好 世界。こんにちは 🙂👩‍💻 \u0000\ufffd",
    "<|endoftext|><s></s>[INST] <|im_start|>user<|im_end|>",
)


class Substitute(Stage):
    """Continue the chain with another model."""

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 1
    form: ClassVar[Literal["torch", "onnx"]] = "torch"
    keeps_result: ClassVar[bool] = False

    substitute: Annotated[
        str, Field(min_length=1, description="The other model: hub id, local folder, or demo.")
    ]
    revision: Annotated[
        str | None,
        Field(description="Its revision on the hub: a branch, tag or commit; default main."),
    ] = None

    def identity(self) -> dict[str, Any]:
        """Its pinned revision alone: what it is called, or where it lies, changes nothing."""
        return {"substitute": self.revision}

    def pinned(self, pin: Callable[[str, str | None], str]) -> Self:
        """Fix the other model's revision."""
        try:
            return self.model_copy(update={"revision": pin(self.substitute, self.revision)})
        except SourceError as error:
            field = "revision" if error.path == "revision" else "substitute"
            raise SourceError(error.args[0], path=field, remedy=error.remedy) from error

    def described(self) -> dict[str, dict[str, Any]]:
        """Name a folder by its last part only."""
        folder = local_folder(self.substitute)
        name = self.substitute if folder is None or self.substitute == DEMO else folder.name
        return {self.name: {**self.model_dump(mode="json"), "substitute": name}}

    def label(self) -> str:
        """This way of distilling."""
        return "substitute"

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Fetch the other model and compare tokenizers."""
        del target
        other = work.fetch(self.substitute, self.revision, report)
        difference = tokenizer_difference(work.original.folder, other.folder)
        if difference is not None:
            raise StageError(
                f"{other.model.id} cannot stand in for {work.original.model.id}: {difference}.",
                path="substitute",
                remedy="Name a model with the same tokenizer; a small one of the same family is.",
            )
        return Outcome(
            notes=(f"continues with {other.model.id} at {other.model.revision}",), source=other
        )


def tokenizer_difference(one: Path, other: Path) -> str | None:
    """Say in what two folders' tokenizers differ, or None when ids mean the same in both."""
    from optimizers.tokenizer_files import load_tokenizer, read_tokenizer

    first, second = read_tokenizer(one), read_tokenizer(other)
    for part in ("normalizer", "pre_tokenizer"):
        if first.get(part) != second.get(part):
            return f"their tokenizers differ in {part}"
    if first["model"].get("type") != second["model"].get("type"):
        return (
            f"their tokenizers are of type {first['model'].get('type')} "
            f"and {second['model'].get('type')}"
        )
    a, b = load_tokenizer(one), load_tokenizer(other)
    ids, others = a.get_vocab(), b.get_vocab()
    if ids != others:
        differing = sorted(
            token for token in ids.keys() | others.keys() if ids.get(token) != others.get(token)
        )
        return (
            f"their vocabularies of {len(ids)} and {len(others)} tokens differ in "
            f"{len(differing)}, for example {differing[0]!r}"
        )
    for text in SAMPLES:
        if a.encode(text).ids != b.encode(text).ids:
            return f"they encode {text[:20]!r} differently"
    return None
