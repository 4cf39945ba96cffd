"""transformers' Trainer, told what distillation is: the loss, the held-out figure, the callbacks.

Owns what a step and an evaluation compute, and what happens between steps: zeros are set to zero
again, time is counted, checkpoints are marked. The loop, the optimizer, clipping, checkpoints and
resuming are Trainer's; the schedule is not, since Trainer's knows of steps only.

A checkpoint's weights are safetensors; its optimizer, schedule and random states are torch files,
which only this program writes, into a folder of its own in the store, and which Trainer reads with
``weights_only=True``.

A leaf: it imports torch and transformers, and is itself imported inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from optimizers.distillation.checkpoints import PREFIX, Mark, write_mark
from optimizers.distillation.loss import divergences
from optimizers.distillation.masks import apply_masks
from optimizers.distillation.schedule import rate
from optimizers.stage import Report
from optimizers.torch_models import go_on

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METRIC = "eval_kl"
_PATIENCE = 3  # evaluations without a better one, then training ends
_PROMPT = 4  # a fourth of a window is given where the student writes the rest


class DistillationTrainer(Trainer):  # type: ignore[misc]  # an untyped base
    """Trains a student to predict what its teacher does."""

    control: Any
    lr_scheduler: Any
    loss_is_scaled_for_ga = False  # compute_loss gives a mean per micro-batch

    def __init__(
        self,
        student: Any,
        teacher: Any,
        *,
        arguments: TrainingArguments,
        windows: Sequence[NDArray[np.int64]],
        held_out: Sequence[NDArray[np.int64]],
        temperature: float,
        on_policy: float,
        masks: Mapping[str, Any],
        watch: Watch,
    ) -> None:
        super().__init__(
            model=student,
            args=arguments,
            train_dataset=[{"input_ids": window} for window in windows],
            eval_dataset=held_out,
            callbacks=[EarlyStoppingCallback(_PATIENCE), KeepZeros(masks), watch],
        )
        self.remove_callback(PrinterCallback)
        self._teacher = teacher.to(arguments.device)
        self._held_out = held_out
        self._temperature = temperature
        self._on_policy = on_policy
        self._watch = watch

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Let the learning rate fall with the steps, or with the time where that is over sooner."""
        if self.lr_scheduler is None:

            def factor(step: int) -> float:
                return rate(max((step + 1) / num_training_steps, self._watch.spent()))

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], *_: Any, **__: Any
    ) -> Any:  # Trainer's further arguments concern labels and outputs, which there are none of
        """Mean KL to the teacher, times the squared temperature, so that gradients keep their size.

        Both see the text without dropout: few tokens are seen, and seldom twice.
        """
        model.eval()
        ids, first = inputs["input_ids"], 0
        if self._is_on_policy():
            # Agarwal et al., "On-Policy Distillation of Language Models: Learning from
            # Self-Generated Mistakes" (GKD), 2023, https://arxiv.org/abs/2306.13649
            length = ids.shape[1]
            given = max(1, length // _PROMPT)
            ids = go_on(model, ids[:, :given], length=length)
            first = given - 1  # positions before the student's own words are not its choice
        with torch.no_grad():
            wanted = self._teacher(input_ids=ids, use_cache=False).logits[:, first:]
        predicted = model(input_ids=ids, use_cache=False).logits[:, first:]
        return self._temperature**2 * divergences(predicted, wanted, self._temperature).mean()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the held-out text."""
        rows = self.args.per_device_train_batch_size
        found = held_out_divergence(self.model, self._teacher, self._held_out, rows=rows)
        metrics = {METRIC: found}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the weights alone; Trainer's own would pickle its arguments beside them."""
        self.model.save_pretrained(output_dir, state_dict=state_dict)

    def _is_on_policy(self) -> bool:
        """Whether the student writes this step's text; the same again after a resume."""
        if not self._on_policy:
            return False
        generator = torch.Generator().manual_seed(self.args.seed + self.state.global_step)
        return float(torch.rand((), generator=generator)) < self._on_policy


class KeepZeros(TrainerCallback):  # type: ignore[misc]  # an untyped base
    """Sets pruned weights to zero again after each of the optimizer's steps."""

    def __init__(self, masks: Mapping[str, Any]) -> None:
        self._masks = dict(masks)

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Bring the masks to where the weights are, once."""
        self._masks = {name: mask.to(args.device) for name, mask in self._masks.items()}

    def on_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        """Undo what the step did to them."""
        apply_masks(model, self._masks)


class Watch(TrainerCallback):  # type: ignore[misc]  # an untyped base
    """Tells how far the training is, ends it when its time is over, and marks checkpoints.

    Args:
        limit_s: Seconds that the training may take, those before a resume included.
        spent_s: Seconds that were spent before.
        save_s: A checkpoint is written at least this often.
        report: Hears of progress.
        clock: Gives seconds.
    """

    def __init__(
        self,
        *,
        limit_s: float,
        spent_s: float,
        save_s: float,
        report: Report,
        clock: Callable[[], float],
    ) -> None:
        self._limit_s = limit_s
        self._save_s = save_s
        self._report = report
        self._clock = clock
        self._began_s = clock() - spent_s
        self._saved_s = clock()
        self._told = ""

    def spent_s(self) -> float:
        """Seconds of training until now."""
        return self._clock() - self._began_s

    def spent(self) -> float:
        """Share of the time that is over."""
        return self.spent_s() / self._limit_s

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Count time, and tell."""
        del args
        spent = self.spent()
        if spent >= 1.0:
            control.should_training_stop = control.should_evaluate = control.should_save = True
        elif self._clock() - self._saved_s >= self._save_s:
            control.should_save = True
        done = max(state.global_step / state.max_steps, spent)
        self._report(0.1 + 0.8 * min(done, 1.0), f"training{self._told}")

    def on_evaluate(self, *_: Any, metrics: Mapping[str, float], **__: Any) -> None:
        """Remember what was found, for the next report."""
        self._told = f", held-out KL {metrics[METRIC]:.4f}"

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Call the checkpoint whole that was just written."""
        self._saved_s = self._clock()
        mark = Mark(
            steps=state.global_step,
            seconds=self.spent_s(),
            is_last=control.should_training_stop,
        )
        write_mark(Path(args.output_dir) / f"{PREFIX}{state.global_step}", mark)


def held_out_divergence(
    student: Any, teacher: Any, windows: Sequence[NDArray[np.int64]], *, rows: int
) -> float:
    """Mean KL(teacher || student) over all positions of some windows, in nats."""
    import numpy as np

    student.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(windows), rows):
            ids = torch.from_numpy(np.stack(windows[start : start + rows]))
            logits = [
                module(input_ids=ids.to(module.device), use_cache=False).logits
                for module in (student, teacher)
            ]
            found.append(divergences(*logits).double())
    return float(torch.cat(found).mean())
