"""``distill: {substitute: MODEL}``: go on with another, smaller model of the same tokenizer.

The cheapest distillation is one that somebody else has done: most families have a small sibling
that was trained on the same data or on the large one's outputs. Owns the check that token ids mean
the same in both. Knows nothing of where models come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from optimizers.errors import SourceError, StageError
from optimizers.siblings import suggestion
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
    version: ClassVar[int] = 2
    form: ClassVar[Literal["torch", "onnx"]] = "torch"
    keeps_result: ClassVar[bool] = False
    rank: ClassVar[int] = 0
    reason: ClassVar[str] = (
        "a substitute replaces the whole model, so what ran before it would be lost"
    )
    group: ClassVar[str | None] = "substitute"

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
            raise _named_here(error) from error

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
        try:
            other = work.fetch(self.substitute, self.revision, report)
            difference = tokenizer_difference(work.original.folder, other.folder)
        except SourceError as error:
            raise _named_here(error) from error
        if difference is not None:
            raise StageError(
                f"{other.model.id} cannot stand in for {work.original.model.id}: {difference}.",
                path="substitute",
                remedy=suggestion(work.original.model.id)
                or "Name a model with the same tokenizer; a small one of the same family is.",
            )
        return Outcome(
            notes=(f"continues with {other.model.id} at {other.model.revision}",), source=other
        )


def _named_here(error: SourceError) -> SourceError:
    """Put an error about a model under the field of this stage that names it."""
    field = "revision" if error.path == "revision" else "substitute"
    return SourceError(error.args[0], path=field, remedy=error.remedy)


def tokenizer_difference(one: Path, other: Path) -> str | None:
    """Say in what two folders' tokenizers differ, or None when ids mean the same in both."""
    from optimizers.tokenizer_files import load_tokenizer

    a, b = load_tokenizer(one), load_tokenizer(other)
    # Written anew by one library, so that older forms of the same file are no difference.
    first, second = json.loads(a.to_str()), json.loads(b.to_str())
    for part in ("normalizer", "pre_tokenizer"):
        if first[part] != second[part]:
            return f"their tokenizers differ in {part}"
    ids, others = a.get_vocab(), b.get_vocab()
    if differing := _differing(ids, others):
        return (
            f"their vocabularies of {len(ids)} and {len(others)} tokens differ in "
            f"{len(differing)}, for example {differing[0]!r}"
        )
    if differing := _differing(_rules(first["model"]), _rules(second["model"])):
        return f"their tokenizers put tokens together by other rules ({', '.join(differing)})"
    if differing := _differing(_added_tokens(first), _added_tokens(second)):
        return f"their tokenizers look for other added tokens, for example {differing[0]!r}"
    for text in SAMPLES:  # what is left: tokens that are put around every text
        if a.encode(text).ids != b.encode(text).ids:
            return f"they encode {text[:20]!r} differently"
    return None


def _rules(model: dict[str, Any]) -> dict[str, Any]:
    """How a tokenizer's model chooses tokens: its type, merges or scores, and options."""
    ids_alone = isinstance(model["vocab"], dict)  # a list has the scores of its pieces
    return {key: value for key, value in model.items() if key != "vocab" or not ids_alone}


def _added_tokens(tokenizer: dict[str, Any]) -> dict[str, Any]:
    return {token["content"]: token for token in tokenizer["added_tokens"]}


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Keys that two mappings do not agree about, in order."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
