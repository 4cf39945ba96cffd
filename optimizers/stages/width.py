"""``restructure: {method: width}``: make all layers of the decoder narrower.

A smaller dense model of the same architecture comes out, faster on any kernel. Owns how many units
stay and the choice of those that are needed most. Knows nothing of how layers lie, of how needs are
measured, and of healing, which should follow.

On the demo model (mean KL to the original in nats, 4,096 tokens of its held-out text), keeping the
units of highest contribution, activation, magnitude: 480 of 640 feed-forward channels 0.097, 0.143,
0.152; 320 of them 0.457, 0.511, 0.774; 2 of 4 key-value heads 0.442, 0.442, 0.591; a hidden size of
224 instead of 256 0.339, 0.344, 0.369. Dropping one of its 6 layers, which takes as many parameters
as the first of these, costs 0.173.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizers.errors import StageError
from optimizers.restructuring import Restructuring
from optimizers.stage import Outcome, Report, Work

if TYPE_CHECKING:
    from optimizers.dimensions import Axes, Kind, Space, Widths

_FIELDS: tuple[Kind, ...] = ("ffn", "kv_groups", "hidden")
_LABELS = {"ffn": "feed-forward channels", "kv_groups": "key-value heads", "hidden": "hidden size"}


class RestructureWidth(Restructuring):
    """Leave out feed-forward channels, groups of heads, or hidden channels."""

    version: ClassVar[int] = 1

    method: Annotated[
        Literal["width"], Field(description="width: every layer is made narrower, alike.")
    ]
    ffn: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Feed-forward channels of each layer that stay: a share below 1, or how "
            "many.",
        ),
    ] = None
    kv_groups: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Key-value heads of each layer that stay, each with all query heads that "
            "read it: a share below 1, or how many.",
        ),
    ] = None
    hidden: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="The hidden size that stays, the same channels in all layers: a share "
            "below 1, or how many. Costs the most quality.",
        ),
    ] = None
    score: Annotated[
        Literal["contribution", "activation", "magnitude"],
        Field(
            description="What stays. contribution: what is most active on the calibration text and "
            "read with the largest weights; activation: activity alone; magnitude: what has the "
            "largest weights, without any text."
        ),
    ] = "contribution"
    round_to: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="ffn and hidden come out as a multiple of this, which quantize's "
            "block_size should divide.",
        ),
    ] = 32

    @property
    def calibrates(self) -> bool:
        """Only where the text tells what is needed."""
        return self.score != "magnitude"

    def problem(self) -> tuple[str, str, str] | None:
        """Something must go, and a number of units is whole."""
        given = {field: kept for field in _FIELDS if (kept := getattr(self, field)) is not None}
        if not given:
            return "ffn", "Nothing would be left out.", "Give ffn, kv_groups, hidden, or several."
        for field, kept in given.items():
            multiple = 1 if field == "kv_groups" else self.round_to
            if kept >= 1 and kept % multiple:
                return (
                    field,
                    f"{kept:g} is neither a share below 1 nor a multiple of {multiple}.",
                    f"Give for example {max(round(kept / multiple), 1) * multiple}"
                    + (", or another round_to." if multiple > 1 else "."),
                )
        return None

    def apply(self, work: Work, target: Path, report: Report) -> Outcome:
        """Write the narrower model."""
        from optimizers.dimensions import find_axes, read_widths
        from optimizers.narrowing import narrow, narrowed_config
        from optimizers.torch_models import load_module, save_module

        documents = work.calibration(report) if self.calibrates else None
        module = load_module(work.folder)
        before = read_widths(module)
        after = replace(before, **{kind: self._count(kind, before) for kind in _FIELDS})
        self._check_embeddings(module, before, after)
        config = narrowed_config(module.config, after)
        axes = find_axes(module, before)
        report(0.3, "scoring channels and heads")
        kept = self._kept(module, axes, after, documents)
        report(0.7, "leaving out")
        narrow(module, axes, kept, config)
        report(0.9, "writing")
        save_module(module.to(config.dtype), work.folder, target)
        told = [
            f"{_LABELS[kind]} {getattr(before, kind)} to {getattr(after, kind)}"
            for kind in _FIELDS
            if getattr(before, kind) != getattr(after, kind)
        ]
        return Outcome(parameters=int(module.num_parameters()), notes=(", ".join(told),))

    def _count(self, kind: Kind, widths: Widths) -> int:
        """How many units of a kind stay.

        Raises:
            StageError: All of them would, or none.
        """
        total = getattr(widths, kind)
        given: float | None = getattr(self, kind)
        if given is None:
            return int(total)
        multiple = 1 if kind == "kv_groups" else self.round_to
        count = int(given) if given >= 1 else round(given * total / multiple) * multiple
        if 0 < count < total:
            return count
        what = "none would be left" if count == 0 else "none would be left out"
        rounded = f" in multiples of {multiple}" if multiple > 1 else ""
        raise StageError(
            f"The model has {_LABELS[kind]} {total}, of which {given:g} are to stay{rounded}: "
            f"{what}.",
            path=kind,
            remedy=f"Keep between {multiple} and {(total - 1) // multiple * multiple}."
            if total > multiple
            else "Leave it out, or give a smaller round_to.",
        )

    def _kept(self, module: Any, axes: Axes, after: Widths, documents: Any) -> dict[Space, Any]:
        """The units that stay, by space: those with the highest scores, of equals the first."""
        import torch

        from optimizers.unit_scores import activations, magnitudes

        if documents is None:
            scores = magnitudes(module, axes)
        else:
            weighted = self.score == "contribution"
            scores = activations(module, axes, documents, weighted=weighted)
        kept = {}
        for space, values in scores.items():
            count = getattr(after, space.kind)
            if count < len(values):
                order = torch.argsort(values, descending=True, stable=True)
                kept[space] = order[:count].sort().values
        return kept

    def _check_embeddings(self, module: Any, before: Widths, after: Widths) -> None:
        scaled = hasattr(module.get_input_embeddings(), "scalar_embed_scale")
        if scaled and after.hidden != before.hidden:
            raise StageError(
                f"{module.config.model_type} multiplies its embeddings by the root of the hidden "
                "size, so that another size would change what they mean.",
                path="hidden",
                remedy="Leave hidden out for this model; ffn and kv_groups can be given.",
            )
