"""What the ways of training share: their fields, and a result that is kept only if it is better.

Owns the order of acts (text, figure before, training, figure after, choice) and what is told about
them. Knows nothing of where the student comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from artifacts.errors import BugError
from optimizers.calibration import WINDOW
from optimizers.stage import FLOAT_BYTES, Outcome, Report, Stage, Work


class Distilling(Stage):
    """Trains a student on what the original model predicts."""

    name: ClassVar[str] = "distill"
    form: ClassVar[Literal["torch", "onnx"]] = "torch"
    trains: ClassVar[bool] = True

    text: Annotated[
        Literal["calibration", "sampled"],
        Field(
            description="What is read. calibration: the calibration text, all of it, and what the "
            "original model writes where that is too short; sampled: only what the original model "
            "writes."
        ),
    ] = "calibration"
    tokens: Annotated[
        int,
        Field(
            ge=1_000,
            le=1_000_000_000,
            description="Tokens to train on, those seen again included; a step at least.",
        ),
    ] = 200_000
    minutes: Annotated[
        float,
        Field(
            gt=0, le=10_080, description="Training ends after so many minutes, whatever the tokens."
        ),
    ] = 10.0
    epochs: Annotated[
        int,
        Field(
            ge=1,
            le=1_000,
            description="How often the same text may be seen; for more tokens, the original model "
            "writes more text.",
        ),
    ] = 8
    learning_rate: Annotated[
        float,
        Field(gt=0, le=1, description="At its highest; it warms up, then falls to zero."),
    ] = 5e-4
    batch_size: Annotated[
        int, Field(ge=1, le=4_096, description="Passages (of at most 256 tokens) of a step.")
    ] = 16
    temperature: Annotated[
        float,
        Field(
            ge=0.1,
            le=100,
            description="Both models' predictions are softened by it; above 1, unlikely tokens "
            "count for more.",
        ),
    ] = 1.0
    weights: Annotated[
        Literal["full", "lora"],
        Field(
            description="full: all weights are trained; lora: low-rank changes to linear layers, "
            "merged into the weights at the end, which takes less memory."
        ),
    ] = "full"
    lora_rank: Annotated[
        int, Field(ge=1, le=1_024, description="With weights: lora, the rank of the changes.")
    ] = 16
    on_policy: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of steps whose text the trained model writes itself, which takes "
            "several times as long.",
        ),
    ] = 0.0
    seed: Annotated[
        int, Field(ge=0, lt=1 << 31, description="Of everything that is drawn at random.")
    ] = 0

    @property
    def calibrates(self) -> bool:
        """Always: it depends on the calibration text, and on the original, which its key names."""
        return True

    def memory(self, parameters: int) -> int:
        """The teacher, and a student of half its size, with gradients and moments if all train."""
        of_student = 1 if self.weights == "lora" else 4
        return FLOAT_BYTES * (parameters + of_student * parameters // 2)

    def distil(self, make: Callable[[], Any], work: Work, target: Path, report: Report) -> Outcome:
        """Train what ``make`` gives, and write it, or what it was before if that is better.

        Distance is KL(original || student) in nats, on text that is not trained on. Sanh et al.,
        "DistilBERT, a distilled version of BERT", 2019, https://arxiv.org/abs/1910.01108.
        """
        import torch
        from accelerate import PartialState

        from optimizers.distillation.adapters import attach, merge
        from optimizers.distillation.masks import count_zeros, zero_masks
        from optimizers.distillation.trainer import held_out_divergence
        from optimizers.distillation.training import Regime, rows_at_once, train
        from optimizers.torch_models import load_module, longest_input, save_module

        if work.training is None:
            raise BugError("A stage that trains was given nothing to train with.")
        teacher, student = load_module(work.original.folder), make()
        window = min(WINDOW, longest_input(teacher), longest_input(student))
        split = work.training.text.split(
            teacher,
            least=math.ceil(self.tokens / (self.epochs * window)),
            most=math.ceil(self.tokens / window),
            window=window,
            is_sampled=self.text == "sampled",
            report=report,
        )
        device = PartialState().device  # where Trainer will train
        teacher, student = teacher.to(device), student.to(device)
        rows = rows_at_once(student, self.batch_size, window)

        def distance(module: Any) -> float:
            return held_out_divergence(module, teacher, split.held_out, rows=rows)

        masks = zero_masks(student)
        before = distance(student)
        torch.manual_seed(self.seed)
        is_lora = self.weights == "lora"
        model = attach(student, masks, rank=self.lora_rank) if is_lora else student
        trained = train(
            model,
            teacher,
            split,
            Regime(
                tokens=self.tokens,
                limit_s=60.0 * self.minutes,
                learning_rate=self.learning_rate,
                batch_size=self.batch_size,
                temperature=self.temperature,
                on_policy=self.on_policy,
                seed=self.seed,
            ),
            masks={} if is_lora else masks,
            folder=work.training.folder,
            report=report,
        )
        student = merge(model, masks) if is_lora else model
        after = distance(student)
        note = (
            f"trained on {trained.tokens:,} tokens in {trained.seconds:.0f} s: KL to the original "
            f"on held-out text {before:.4f} -> {after:.4f}"
        )
        if not after < before:  # a figure that is not a number is no better either
            note += ", which is no better, so the model is left as it was"
            student = make()
        report(0.95, "writing")
        save_module(student.to("cpu"), work.folder, target)
        return Outcome(
            parameters=int(student.num_parameters()),
            zeros=count_zeros(student) if masks else None,
            notes=(note,),
        )
