"""A model's smaller sibling as a Hugging Face folder: torch stages of a chain, applied one by one.

A build ends with an artifact that can be served; who wants to go on with the model itself takes it
from here. Owns the order of acts and what each stage is given. Knows nothing of which stages they
are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from artifacts.digest import sha256_json
from artifacts.layout import Layout
from optimizers.calibration import Calibration
from optimizers.distillation.texts import TrainingText
from optimizers.results import Results
from optimizers.sources import Source, fetch
from optimizers.spec import parse_chain
from optimizers.stage import Report, Training, Work

_NOTES = "notes.json"


def make_sibling(
    folder: Path,
    model: Path,
    chain: Sequence[dict[str, Any]],
    text: Path,
    tell: Callable[[str], None],
) -> tuple[Path, tuple[str, ...]]:
    """The folder of what a chain makes of a model, made if it is not there yet; and its notes.

    Args:
        folder: Where models lie; it gets a folder of its own in it.
        model: A Hugging Face folder.
        chain: Torch stages.
        text: To calibrate and to train on.
        tell: Hears of progress.
    """
    made = folder / f"sibling-{sha256_json([*chain])[:12]}"
    if not made.is_dir():
        parsed = parse_chain("sibling", list(chain))
        if parsed.errors:
            raise ValueError(str(parsed.errors[0]))
        draft = made.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        layout = Layout(draft)
        layout.create()
        original = fetch(str(model), None, layout=layout, offline=True, report=_ignore)
        calibration = Calibration(original, str(text), None)
        results = Results(layout)
        training_text = TrainingText(original, calibration, results)
        work, notes = original.folder, list[str]()
        for number, stage in enumerate(parsed.stages):
            target = draft / str(number)
            target.mkdir()
            training = Training(results.lasting(target.name), training_text)
            told = Work(work, None, original, _nothing, calibration.windows, training=training)
            tell(f"{stage.name}, {number + 1} of {len(parsed.stages)}")
            notes += stage.apply(told, target, _ignore).notes
            work = target
        (work / _NOTES).write_text(json.dumps(notes), encoding="utf-8")
        work.rename(made)
        shutil.rmtree(draft)
    return made, tuple(json.loads((made / _NOTES).read_text(encoding="utf-8")))


def _ignore(_fraction: float, _message: str) -> None:
    """Nobody wants to know how far a stage is."""


def _nothing(name: str, _revision: str | None, _report: Report) -> Source:
    raise ValueError(f"A sibling is made of its own model, not of {name}.")
