"""What all ways of smoothing share: their place in a chain, and how they are run.

Owns the pass over the calibration text that shows every layer's inputs, and the folding of what was
chosen; all scales are chosen for the model as it came in, whose function they do not change. The
result is kept in float32, since weights of 16 bits would round the scales away. Knows nothing of
how scales are chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from optimizers.errors import StageError
from optimizers.flow import Visited, visit_layers
from optimizers.foldings import Folding
from optimizers.stage import Outcome, Report, Stage, Work

_TOLD = {"norm": "norms", "value": "attention's values", "up": "feed-forward layers"}


class Smoothing(Stage):
    """Moves scales between layers so that less is lost when they are quantized."""

    name: ClassVar[str] = "smooth"
    form: ClassVar[Literal["torch", "onnx"]] = "torch"
    rank: ClassVar[int] = 20
    reason: ClassVar[str] = "its scales are those of the weights that are quantized in the end"
    group: ClassVar[str | None] = "smooth"

    @property
    def calibrates(self) -> bool:
        """Always: it looks at what the text makes flow."""
        return True

    def smooth(
        self, work: Work, target: Path, report: Report, choose: Callable[[Folding, Any], Any]
    ) -> Outcome:
        """Load, have scales chosen for every folding, fold them in, and save.

        Args:
            work: What to work on.
            target: An empty folder.
            report: Hears of the progress.
            choose: Gives the scales (channels,) of a folding whose consumers' inputs are
                (tokens, inputs) float32.

        Raises:
            StageError: There is nowhere to fold scales in.
        """
        import torch

        from optimizers.folding_places import find_foldings
        from optimizers.torch_models import load_module, save_module

        windows = work.calibration(report)
        module = load_module(work.folder)
        foldings = find_foldings(module, windows[0])
        waiting = {folding.consumers[0][0]: folding for folding in foldings}
        chosen: list[tuple[Folding, Any]] = []

        def visit(layer: Visited) -> None:
            if (folding := waiting.get(layer.name)) is not None:
                report(0.1 + 0.7 * len(chosen) / len(foldings), f"smoothing {folding.name}")
                scales = choose(folding, layer.inputs)
                if not bool((torch.isfinite(scales) & (scales > 0)).all()):
                    raise StageError(
                        f"The inputs of {layer.name} allow no scales: some are no finite numbers.",
                        remedy="Leave smooth out for this model.",
                    )
                chosen.append((folding, scales))

        visit_layers(module, windows, visit)
        for folding, scales in chosen:
            folding.fold(scales)
        report(0.8, "writing")
        module.config.dtype = torch.float32
        save_module(module, work.folder, target)
        counts = Counter(_TOLD[folding.kind] for folding in foldings)
        told = ", ".join(f"{count} {what}" for what, count in counts.items())
        return Outcome(parameters=int(module.num_parameters()), notes=(f"scales behind {told}",))
