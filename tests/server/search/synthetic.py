"""A search without models: chains of one stage whose figures are formulas, in a real store.

Run as a program it searches in a process of its own, so that a test can kill it:
``python -m tests.server.search.synthetic STORE STORAGE TRIALS SECONDS_PER_BUILD BUILDS LOG`` hangs
in the build after so many, and writes a line per build into the log.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.digest import sha256_file, sha256_json
from artifacts.isa import isa_class
from artifacts.manifest import (
    ExportRecord,
    FileEntry,
    GenerationDefaults,
    GraphSpec,
    Manifest,
    ModelSource,
    Quality,
    StageRecord,
)
from artifacts.protocol import (
    BuildEvent,
    BuildRequest,
    Built,
    FieldError,
    PlannedVariant,
    PlanRequest,
    PlanResponse,
)
from artifacts.store import Store
from server.config.fields import Config
from server.errors import OptimizerError
from server.search.campaign import Campaign, Outcome
from server.search.objectives import Measures, chosen
from server.search.preparation import Prepared, prepare
from server.search.study import Study

SPACE = [{"squeeze": {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0, "high": 9}}}]
HAND_WRITTEN = [{"squeeze": {"x": 0.25, "y": 3}}]
OBJECTIVES = ["quality", "decode", "prefill", "memory"]


def figures(chain: Any) -> dict[str, float]:
    """What a chain comes to: more x is faster and worse, more y smaller and slower."""
    fields = chain[0]["squeeze"] if chain else {"x": 0.0, "y": 0}
    x, y = float(fields["x"]), float(fields["y"])
    return {
        "kl_mean": x * x,
        "decode_1": 100 + 50 * x - 3 * y,
        "decode_8": 400.0,
        "prefill": 1000 + 100 * x + y,
        "resident_bytes": 1e8 - 1e6 * y,
    }


def quality_of(chain: Any, text: str | None = None) -> Quality:
    """The part of it that a build measures, on a text."""
    kl_mean = figures(chain)["kl_mean"]
    return Quality(
        kl_mean=kl_mean,
        kl_p99=10 * kl_mean,
        top1_agreement=1 - kl_mean,
        documents=1,
        positions=100,
        isa=isa_class(),
        text_sha256=None if text is None else sha256_file(Path(text)),
    )


class FormulaOptimizer:
    """Refuses x above 0.95 when planning, fails to build y = 7, and is slow where asked."""

    def __init__(
        self,
        store: Path,
        *,
        build_s: float = 0.0,
        builds: int = 1_000_000,
        log: Path | None = None,
    ) -> None:
        self._store = Store(store)
        self._store.layout.create()
        self._build_s = build_s
        self._builds = builds
        self._log = log
        self._begun = 0
        self.built: list[str] = []
        self.judged = 0
        self.failure: Exception | None = None

    async def plan(self, request: PlanRequest) -> PlanResponse:
        variants, errors = {}, []
        for name, chain in request.variants.items():
            if chain and chain[0]["squeeze"]["x"] > 0.95:
                path = f"variants.{name}.chain[0].squeeze.x"
                errors.append(FieldError(path=path, message="too much", remedy="Lower it."))
                continue
            recipe = sha256_json(chain)
            artifact = self._store.find(recipe)
            variants[name] = PlannedVariant(recipe=recipe, chain=tuple(chain), artifact=artifact)
        return PlanResponse(errors=tuple(errors), revision="r1", variants=variants)

    async def build(
        self, request: BuildRequest, observe: Callable[[BuildEvent], None], *, background: bool
    ) -> Built:
        del observe, background
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{request.recipe}\n")
        self._begun += 1
        await asyncio.sleep(self._build_s if self._begun <= self._builds else 1e6)
        if self.failure is not None:
            raise self.failure
        chain = [dict(stage) for stage in request.chain]
        if chain and chain[0]["squeeze"]["y"] == 7:
            raise OptimizerError("seven is odd", code="stage")
        self.built.append(request.recipe)
        text = None if request.evaluation is None else request.evaluation.text
        quality = quality_of(chain, text)
        return Built(artifact=self._store.publish(self._manifest(request, quality)))

    async def judge(self, *_: Any, **__: Any) -> Quality:
        self.judged += 1
        return quality_of(HAND_WRITTEN)

    def _manifest(self, request: BuildRequest, quality: Quality) -> Manifest:
        files = []
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("model.onnx", ""), ("note.txt", request.recipe)):
                path = Path(folder) / name
                path.write_text(text)
                digest, size = self._store.add_blob(path)
                files.append(FileEntry(name=name, size_bytes=size, sha256=digest))
        graph = GraphSpec(form="packed", vocab_size=8, max_length=64, layers=(), inputs=())
        return Manifest(
            recipe=request.recipe,
            model=ModelSource(id="m", revision="r1", architecture="a"),
            chain=request.chain,
            graph=graph,
            generation=GenerationDefaults(),
            files=tuple(files),
            export=ExportRecord(
                exporter="mobius", max_logit_error=0, logit_scale=1, tokens_compared=1
            ),
            lineage=(
                StageRecord(stage="s", form="onnx", seconds=0, size_bytes=64, quality=quality),
            ),
            libraries={},
            created="2026-01-01T00:00:00Z",
        )


class FormulaProber:
    """Knows the figures; rounds differ by what ``wobble`` says."""

    def __init__(self, wobble: Callable[[str, int | None], float] = lambda *_: 1.0) -> None:
        self._wobble = wobble
        self.timed: list[tuple[str, int | None]] = []

    async def __call__(self, config: Config, variant: str, *, round_: int | None) -> Measures:
        chain = config.variants[variant].chain
        self.timed.append((str(chain), round_))
        measured = figures(chain)
        measured.pop("kl_mean")
        factor = self._wobble(str(chain), round_)
        return {name: value * factor for name, value in measured.items()}


class Quiet:
    """Watches nothing."""

    def status(self, status: Any) -> None:
        pass

    def event(self, event: Any) -> None:
        pass

    def phase(self, description: str, done: int, total: int, doing: str) -> None:
        pass


def config_for(store: Path, **changes: Any) -> Config:
    """A config with one hand-written variant and one space."""
    content: dict[str, Any] = {
        "model": "m",
        "store": str(store),
        "variants": {"original": [], "hand": HAND_WRITTEN, "lean": SPACE},
        "search": {"trials": 12, "rounds": 1},
        **changes,
    }
    return Config.model_validate(content)


def open_study(storage: str, config: Config) -> Study:
    """The study that every run of a test's search has in common."""
    objectives = chosen(config.search.objectives)
    return Study.open(storage, "synthetic", objectives, seed=config.search.seed)


async def prepared_for(config: Config, optimizer: FormulaOptimizer) -> Prepared:
    """Plan it."""
    return await prepare(lambda: config, "c.yaml", optimizer)


async def search(
    config: Config,
    storage: str,
    optimizer: FormulaOptimizer,
    prober: FormulaProber | None = None,
) -> Outcome:
    """Run a whole campaign."""
    prepared = await prepared_for(config, optimizer)
    study = open_study(storage, config)
    prober = prober or FormulaProber()
    return await Campaign(prepared, study, optimizer, prober, Quiet(), threads=1).run()


def main(arguments: list[str]) -> None:
    """Search until done or killed."""
    store, storage, trials, build_s, builds, log = arguments
    config = config_for(Path(store), search={"trials": int(trials), "rounds": 1})
    optimizer = FormulaOptimizer(
        Path(store), build_s=float(build_s), builds=int(builds), log=Path(log)
    )
    outcome = asyncio.run(search(config, storage, optimizer))
    sys.stdout.write(f"{outcome.ending.name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
