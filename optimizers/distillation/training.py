"""One training: from a student, a teacher and windows of text to a student that was trained.

Owns how long it lasts, how much is computed at once, and where it goes on after it was killed.
Knows nothing of stages and of whether the result is worth keeping.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizers.distillation.checkpoints import find_last
from optimizers.distillation.texts import Split
from optimizers.stage import Report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EVALUATIONS, _APART = 8, 4  # of the held-out text: how many, and steps between two at least
_SAVE_S = 120.0  # what a killed build may lose at most, beside what lies between evaluations
_LOGIT_BYTES = 128 << 20  # of one model's logits at a time


@dataclass(frozen=True, slots=True)
class Regime:
    """How to train.

    Attributes:
        tokens: To train on, those seen again included.
        limit_s: Seconds, whatever the tokens.
        learning_rate: At its highest; it warms up and falls (see ``schedule``).
        batch_size: Windows of a step.
        temperature: Both distributions are softened by it.
        on_policy: Share of steps whose text the student writes.
        seed: Of the order of windows and of what the student writes.
    """

    tokens: int
    limit_s: float
    learning_rate: float
    batch_size: int
    temperature: float
    on_policy: float
    seed: int


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to.

    Attributes:
        tokens: Trained on, those before a resume included.
        seconds: Spent, likewise.
    """

    tokens: int
    seconds: float


def train(
    student: Any,
    teacher: Any,
    split: Split,
    regime: Regime,
    *,
    masks: Mapping[str, Any],
    folder: Path,
    report: Report,
    clock: Callable[[], float] = time.monotonic,
) -> Trained:
    """Train a student in place; it ends with the weights that were best on the held-out text.

    Args:
        student: In float32; what asks for a gradient is trained.
        teacher: Gives the predictions; is not changed.
        split: Text, in windows of one length.
        regime: How to train.
        masks: Where named weights must stay zero.
        folder: Of checkpoints; what a killed training left there is gone on with.
        report: Hears of progress.
        clock: Gives seconds.
    """
    from optimizers.distillation.trainer import DistillationTrainer, Watch

    found = find_last(folder)
    window = len(split.train[0])
    steps = max(1, regime.tokens // (regime.batch_size * window))
    if found is not None and found[1].is_last:
        steps = found[1].steps
    watch = Watch(
        limit_s=regime.limit_s,
        spent_s=0.0 if found is None else found[1].seconds,
        save_s=_SAVE_S,
        report=report,
        clock=clock,
    )
    trainer = DistillationTrainer(
        student,
        teacher,
        arguments=_arguments(student, regime, folder, steps=steps, window=window),
        windows=_order(split.train, steps * regime.batch_size, regime.seed),
        held_out=split.held_out,
        temperature=regime.temperature,
        on_policy=regime.on_policy,
        masks=masks,
        watch=watch,
    )
    trainer.train(resume_from_checkpoint=None if found is None else str(found[0]))
    return Trained(tokens=int(trainer.state.num_input_tokens_seen), seconds=watch.spent_s())


def rows_at_once(module: Any, batch_size: int, window: int) -> int:
    """How many of a batch's windows to compute together: all, if their logits are not too large."""
    row = 4 * window * int(module.get_output_embeddings().weight.shape[0])
    fits = max(1, _LOGIT_BYTES // row)
    return max(rows for rows in range(1, batch_size + 1) if rows <= fits and batch_size % rows == 0)


def _arguments(student: Any, regime: Regime, folder: Path, *, steps: int, window: int) -> Any:
    from transformers import TrainingArguments

    from optimizers.distillation.trainer import METRIC

    rows = rows_at_once(student, regime.batch_size, window)
    interval = max(_APART, math.ceil(steps / _EVALUATIONS))
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=regime.batch_size // rows,
        max_steps=steps,
        learning_rate=regime.learning_rate,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=regime.seed,
        train_sampling_strategy="sequential",  # the windows come in the order they are given
        include_num_input_tokens_seen="all",
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,  # the last one and the best one
        load_best_model_at_end=True,
        metric_for_best_model=METRIC,
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,  # patience goes on after a resume
        use_cache=getattr(student.config, "use_cache", True),  # Trainer writes it into the config
        logging_strategy="no",
        log_level="error",
        disable_tqdm=True,  # a build's standard error is a log
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001  # several would need another loss
    return arguments


def _order(
    windows: tuple[NDArray[np.int64], ...], count: int, seed: int
) -> list[NDArray[np.int64]]:
    """Each window once in a random order, then all of them again in another, until enough."""
    import numpy as np

    generator = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < count:
        order += generator.permutation(len(windows)).tolist()
    return [windows[index] for index in order[:count]]
