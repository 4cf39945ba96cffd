"""``build``: run a chain from a source to an artifact, resuming at the last finished stage.

Owns the order of steps and what goes from one to the next. Knows nothing of how a stage works, of
file formats, or of the protocol's descriptors.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

from artifacts.errors import BugError, CorruptArtifactError, FormatError
from artifacts.locks import building, exclusive
from artifacts.manifest import ExportRecord, GraphSpec, Manifest, Quality, StageRecord
from artifacts.protocol import BuildRequest, Built
from artifacts.remote import Remote, RemoteError
from artifacts.store import Store
from optimizers import sources
from optimizers.answer import answer
from optimizers.calibration import Calibration, digest_of, text_of
from optimizers.compression import compressed_bytes
from optimizers.distillation.texts import TrainingText
from optimizers.equipment import check_equipment, is_equipped
from optimizers.errors import RecipeChangedError, RequestError
from optimizers.events import Events
from optimizers.generation_config import generation_defaults
from optimizers.memory import check_memory, check_streamed_memory
from optimizers.publish import DATA, MODEL, add_files, published
from optimizers.quality import Judge
from optimizers.recipe import export_key, libraries, recipe_digest, source_key, stage_key
from optimizers.results import Made, Result, Results, folder_bytes
from optimizers.sources import Source
from optimizers.spec import parse_chain
from optimizers.stage import Report, Stage, Training, Work
from optimizers.stage_record import blaming, record_of
from optimizers.steps import Steps
from optimizers.streaming import NotStreamedError, can_stream, export_step, quantize_step


def run(line: bytes, events: Events) -> int:
    """Read a request, build, and end with exactly one final event; gives the exit status."""
    return answer(
        line, BuildRequest, lambda request: Built(artifact=Build(request, events).run()), events
    )


@dataclass(frozen=True, slots=True)
class _Graph:
    """Where the ONNX form lies and how it is run."""

    folder: Path
    spec: GraphSpec
    export: ExportRecord


class Build:
    """One run of one request."""

    def __init__(self, request: BuildRequest, events: Events) -> None:
        self._request = request
        self._store = Store(Path(request.store).expanduser())
        self._remote = _remote_of(request)
        self._results = Results(self._store.layout)
        self._stages = self._parse()
        self._steps = Steps(self._results, events, self._names())
        given = request.calibration.text if request.calibration is not None else None
        self._calibration_text = text_of(request.model, given)
        self._calibration_digest = digest_of(self._calibration_text)
        self._calibrated_by = ""  # known with the original
        self._tried: tuple[str, ...] = ()

    def run(self) -> str:
        """Give the artifact's digest, built unless it is there.

        Raises:
            OptimizerError: The chain cannot be built.
            ArtifactError: The store cannot be used.
        """
        recipe = self._request.recipe
        if self._remote is None and self._store.find(recipe) is None:
            self._check_equipment()  # first: nothing need be writable where nothing can be built
        self._store.layout.create()
        with building(self._store.layout), exclusive(self._store.layout, f"recipe-{recipe}"):
            artifact = self._find(recipe) or self._pull(recipe) or self._build()
            if self._request.publish and self._remote is not None:
                self._remote.push(recipe, artifact, self._store)
            return artifact

    def _check_equipment(self) -> None:
        places = "in the store" if self._remote is None else f"here nor in {self._remote.address}"
        check_equipment(f"Variant {self._request.variant!r} is not {places}")

    def _parse(self) -> tuple[Stage, ...]:
        path = f"variants.{self._request.variant}.chain"
        chain = parse_chain(path, self._request.chain)
        if chain.errors:
            first = chain.errors[0]
            raise RequestError(first.message, path=first.path, remedy=first.remedy)
        return chain.stages

    def _names(self) -> list[str]:
        names = [stage.name for stage in self._stages if stage.form == "torch"]
        later = [stage.name for stage in self._stages if stage.form == "onnx"]
        return ["fetch", *names, "export", *later, "publish"]

    def _find(self, recipe: str) -> str | None:
        """The artifact that is there already, if it is whole; a damaged one is forgotten."""
        if (artifact := self._store.find(recipe)) is None:
            return None
        try:
            self._store.open(artifact, verify=True)
        except CorruptArtifactError as error:
            sys.stderr.write(f"building again: {error}\n")
            self._store.forget(artifact)
            return None
        return artifact

    def _pull(self, recipe: str) -> str | None:
        """The artifact from the object store; None where it is not there, or nobody answers."""
        if self._remote is None:
            return None
        report = self._steps.begin(reused=False)
        artifact: str | None = None
        try:
            artifact = self._remote.pull(recipe, self._store, report)
        except (RemoteError, CorruptArtifactError) as error:
            # Whoever is to serve can do without; whoever is to publish is told at once, but of what
            # another version left there: that is replaced.
            replaces = not self._request.publish or isinstance(error, FormatError)
            if not (replaces and is_equipped()):
                raise
            sys.stderr.write(f"not fetched, building: {error}\n")
        if artifact is None:
            self._steps.again()
        return artifact

    def _build(self) -> str:
        self._check_equipment()
        original = self._fetch_original()
        if (artifact := self._stream(original)) is not None:
            return artifact
        check_memory(original.folder, self._stages, f"variants.{self._request.variant}.chain")
        text = self._request.evaluation.text if self._request.evaluation is not None else None
        judge = Judge(self._results, original, text, self._request.threads)
        calibration = Calibration(original, self._calibration_text, judge.text)
        self._calibrated_by = calibration.key
        self._training_text = TrainingText(original, calibration, self._results)
        current = original
        key = source_key(original.model.revision)
        for position, stage in enumerate(self._stages):
            if stage.form == "torch":
                work = Work(current.folder, None, original, self._fetch, calibration.windows)
                result = self._run_stage(position, work, key)
                if result.source is not None:
                    current, key = result.source, source_key(result.source.model.revision)
                else:
                    current = replace(current, folder=result.folder)
                    key = stage_key(key, stage, self._calibrated_by)
                self._measure(result, partial(judge.torch, key, current.folder))
        graph, key = self._export(current, key, judge)
        for position, stage in enumerate(self._stages):
            if stage.form == "onnx":
                work = Work(
                    graph.folder,
                    graph.spec,
                    original,
                    self._fetch,
                    calibration.windows,
                    self._request.threads,
                )
                result = self._run_stage(position, work, key)
                graph = replace(graph, folder=result.folder, spec=result.graph or graph.spec)
                key = stage_key(key, stage, self._calibrated_by)
                self._measure(result, partial(judge.onnx, key, graph.folder / MODEL, graph.spec))
        return self._publish(original, current, graph)

    def _stream(self, original: Source) -> str | None:
        """Build without a float32 graph, where nothing else is wanted of the chain.

        None where that cannot be, and the build is to take all its steps.
        """
        if self._request.measure or not can_stream(self._stages):
            return None
        exported = export_key(source_key(original.model.revision))
        key = stage_key(exported, self._stages[0], "")
        if self._results.has(exported) or self._results.has(key):
            return None
        check_streamed_memory(original.folder)
        with self._results.passing(key) as scratch:
            (folder := scratch / "result").mkdir()
            threads = self._request.threads
            work = Work(folder, None, original, self._fetch, _no_text, threads)
            try:
                unwritten = export_step(work, scratch, self._steps)
            except NotStreamedError as error:
                sys.stderr.write(f"not streamed: {error}\n")
                self._steps.again()
                self._tried = (f"mobius (streamed): {error}",)
                return None
            spec = quantize_step(unwritten, work, self._stages[0], self._path(0), self._steps)
            graph = _Graph(folder, spec, unwritten.record)
            return self._publish(original, original, graph, is_spare=True)

    def _path(self, position: int) -> str:
        """Where in the config a stage is."""
        return f"variants.{self._request.variant}.chain[{position}].{self._stages[position].name}"

    def _fetch_original(self) -> Source:
        report = self._steps.begin(reused=False)
        source = self._fetch(self._request.model, self._request.revision, report)
        recipe = recipe_digest(source.model.revision, self._stages, self._calibration_digest)
        if recipe != self._request.recipe:
            raise RecipeChangedError(
                f"{self._request.model} is no longer what was planned.",
                path="model",
                remedy="Start again, so that the change is planned.",
            )
        return source

    def _fetch(self, model: str, revision: str | None, report: Report) -> Source:
        return sources.fetch(
            model,
            revision,
            layout=self._store.layout,
            offline=self._request.offline,
            report=report,
        )

    def _export(self, current: Source, key: str, judge: Judge) -> tuple[_Graph, str]:
        """Export the torch form, or reuse its export."""
        key = export_key(key)

        def work(target: Path, report: Report) -> Made:
            from optimizers.export import export

            began = time.monotonic()
            exported = export(
                current.folder,
                target,
                progress=report,
                threads=self._request.threads,
                optimum_python=self._request.optimum_python,
            )
            record = StageRecord(
                stage="export",
                method=exported.record.exporter,
                form="onnx",
                seconds=time.monotonic() - began,
                size_bytes=folder_bytes(target),
                zeros=self._check_zeros(target),
                notes=exported.record.notes,
            )
            return Made(record, graph=exported.graph, export=exported.record)

        result = self._steps.run(key, work)
        if result.graph is None or result.export is None:
            raise BugError("An export was kept without its graph.")
        tried = (*self._tried, *result.export.tried)
        record = result.export.model_copy(update={"tried": tried})
        graph = _Graph(result.folder, result.graph, record)
        self._measure(result, partial(judge.onnx, key, graph.folder / MODEL, graph.spec))
        return graph, key

    def _run_stage(self, position: int, work: Work, parent: str) -> Result:
        """Run a stage on what the steps before it left, or reuse its result."""
        stage = self._stages[position]
        key = stage_key(parent, stage, self._calibrated_by)
        path = self._path(position)

        def make(target: Path, report: Report) -> Made:
            began = time.monotonic()
            training = None
            if stage.trains:
                training = Training(self._results.lasting(key), self._training_text)
            with blaming(stage, path):
                outcome = stage.apply(replace(work, training=training), target, report)
            record = record_of(
                stage,
                outcome,
                seconds=time.monotonic() - began,
                size_bytes=folder_bytes(outcome.source.folder if outcome.source else target),
                zeros=outcome.zeros if stage.form == "torch" else self._check_zeros(target),
            )
            return Made(record, graph=outcome.graph, source=outcome.source)

        return self._steps.run(key, make, keep=stage.keeps_result)

    def _measure(self, result: Result, judge: Callable[[Report], Quality]) -> None:
        """End a step with its figures, unless the request puts measuring off.

        What zeros save on a disk is told of the finished artifact alone.
        """
        record = result.record
        if record.zeros and self._steps.is_last:
            self._steps.report(1.0, "packing, to tell what zeros save on a disk")
            files = [path for name in DATA if (path := result.folder / name).is_file()]
            packed = sum(compressed_bytes(path) for path in files)
            record = record.model_copy(update={"compressed_bytes": packed})
        quality = judge(self._steps.report) if self._request.measure else None
        self._steps.measured(record, quality)

    def _check_zeros(self, folder: Path) -> int | None:
        """Count what is zero in the ONNX form, where a stage before has made zeros."""
        made = [one.zeros for one in self._steps.lineage if one.form == "torch" and one.zeros]
        if not made:
            return None
        from optimizers.zeros import check_zeros

        return check_zeros(folder, made[-1] or 0)

    def _publish(
        self, original: Source, current: Source, graph: _Graph, *, is_spare: bool = False
    ) -> str:
        """Put the artifact into the store; its manifest comes last.

        Args:
            original: Whose tokenizer and defaults it has.
            current: Whose config describes its weights.
            graph: Its ONNX form.
            is_spare: Nobody else needs the graph's folder, so its weights need not be copied.
        """
        from optimizers.kernel_audit import audit

        self._steps.begin(reused=False)
        files = add_files(
            self._store,
            onnx_folder=graph.folder,
            config_folder=current.folder,
            text_folder=original.folder,
            is_spare=is_spare,
        )
        return self._store.publish(
            Manifest(
                recipe=self._request.recipe,
                model=original.model,
                chain=tuple(stage.described() for stage in self._stages),
                graph=published(graph.spec, files),
                generation=generation_defaults(original.folder),
                files=files,
                export=graph.export,
                lineage=tuple(self._steps.lineage),
                libraries=libraries(),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                audit=audit(graph.folder, graph.spec),
            )
        )


def _remote_of(request: BuildRequest) -> Remote | None:
    """The object store to ask, if one is to be asked.

    Raises:
        RemoteError: Its address is none, or what speaks to it is not installed.
    """
    return None if request.remote is None or request.offline else Remote(request.remote)


def _no_text(report: Report) -> NoReturn:
    """A stage that streams looks at no text."""
    del report
    raise BugError("A stage that streams asked for the calibration text.")
