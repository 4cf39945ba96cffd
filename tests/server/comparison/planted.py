"""Planted figures: variants whose every number a test chooses, and a report of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from artifacts.manifest import (
    DocumentQuality,
    ExportRecord,
    FileEntry,
    GenerationDefaults,
    GraphSpec,
    Manifest,
    ModelSource,
    Quality,
    StageRecord,
)
from server.comparison.divergence import Divergence
from server.comparison.figures import Subject, VariantFigures, figures
from server.comparison.findings import findings
from server.comparison.machine import Machine
from server.comparison.report import Report
from server.comparison.speed import Speed

DRIFT = (1.0, 0.8, 1.1, 0.9, 1.05)
"""How fast the machine is in each round: the same for all variants."""

MakeSubject = Callable[..., Subject]


def speed(
    factor: float, *, others_cores: float = 0.0, samples: int = 10, load_s: float = 0.5
) -> Speed:
    """A round of a machine that is this many times as fast as usual."""
    return Speed(
        decode_1=50 * factor,
        decode_8=200 * factor,
        prefill=1000 * factor,
        first_token_s=(0.02 / factor,) * samples,
        inter_token_s=(0.02 / factor,) * samples,
        engine_seconds_per_token=0.004 / factor,
        resident_bytes=200_000_000,
        peak_bytes=210_000_000,
        load_s=load_s,
        start_s=2.0,
        others_cores=others_cores,
    )


def quality(
    kl: float, *, agreement: float = 1.0, nll: float | None = 2.5, text: str | None = "c" * 64
) -> Quality:
    """Twelve documents whose figures lie around these."""
    around = [1 + (index - 5.5) / 50 for index in range(12)]
    by_document = tuple(
        DocumentQuality(
            positions=100 + 10 * index,
            kl_mean=kl * around[index],
            agreement=1 - (1 - agreement) * around[index],
            nll=None if nll is None else nll + kl * (around[index] - 0.5),
            original_nll=None if nll is None else 2.5,
        )
        for index in range(12)
    )
    return Quality(
        kl_mean=kl,
        kl_p99=10 * kl,
        top1_agreement=agreement,
        perplexity=None if nll is None else 12.2,
        documents=12,
        positions=sum(document.positions for document in by_document),
        isa="x86_64-avx2",
        text_sha256=text,
        by_document=by_document,
    )


def make_subject(
    name: str = "baseline",
    *,
    chain: Sequence[dict[str, dict[str, Any]]] = (),
    speeds: Sequence[Speed] = tuple(speed(drift) for drift in DRIFT),
    of: Quality | None = None,
    size_bytes: int = 25_000_000,
    lineage: Sequence[StageRecord] | None = None,
    divergence: Divergence | None = None,
    breaches: tuple[str, ...] = (),
    failure: str | None = None,
) -> Subject:
    """Make a variant; what is not said is as the baseline has it."""
    measured = quality(0.0) if of is None else of
    export = StageRecord(
        stage="export",
        method="mobius",
        form="onnx",
        seconds=2.0,
        size_bytes=25_000_000,
        quality=measured,
    )
    manifest = Manifest(
        recipe="a" * 64,
        model=ModelSource(id="demo", revision="r1", architecture="LlamaForCausalLM"),
        chain=tuple(chain),
        graph=GraphSpec(form="packed", vocab_size=64, max_length=128, layers=(), inputs=()),
        generation=GenerationDefaults(),
        files=(FileEntry(name="model.onnx", size_bytes=size_bytes, sha256="b" * 64),),
        export=ExportRecord(
            exporter="mobius", max_logit_error=1e-6, logit_scale=10.0, tokens_compared=64
        ),
        lineage=(export,) if lineage is None else tuple(lineage),
        libraries={"onnxruntime": "1.32.0"},
        created="2026-01-01T00:00:00Z",
    )
    return Subject(
        name=name,
        artifact=manifest.digest,
        manifest=manifest,
        speeds=dict(enumerate(speeds)),
        divergence=divergence,
        breaches=breaches,
        failure=failure,
    )


def report_of(variants: tuple[VariantFigures, ...], **changes: Any) -> Report:
    """A report on a machine that does not exist."""
    machine = Machine(
        processor="Example 9000",
        isa="x86_64-avx2",
        flags=("avx2",),
        cores=2,
        memory_bytes=8_000_000_000,
        system="Linux 6",
        python="3.11.9",
        libraries={"onnxruntime": "1.32.0"},
    )
    values: dict[str, Any] = {
        "model": "demo",
        "revision": "r1",
        "text": "the evaluation text (heldout.jsonl)",
        "machine": machine,
        "began": "2026-11-24T12:00:00+00:00",
        "rounds": 5,
        "complete": True,
        "quick": False,
        "variants": variants,
        "findings": {v.name: findings(v, variants[0]) for v in variants[1:]},
        "failed": {},
    }
    return Report(**(values | changes))


def planted_report() -> Report:
    """A baseline and two variants, one fast and lossy, one that changes nothing."""
    stages = (
        StageRecord(
            stage="prune",
            method="magnitude",
            params={"amount": 0.5},
            form="torch",
            seconds=9.0,
            size_bytes=20_000_000,
            zeros=1_000,
            quality=quality(0.01),
        ),
        StageRecord(
            stage="quantize",
            method="weight_only",
            form="onnx",
            seconds=1.0,
            size_bytes=5_000_000,
            zeros=1_000,
            quality=quality(0.05, agreement=0.9),
            notes=("lm_head kept",),
        ),
    )
    int4 = make_subject(
        "int4",
        chain=({"prune": {"amount": 0.5}}, {"quantize": {"bits": 4}}),
        speeds=[speed(2 * drift * noise) for drift, noise in zip(DRIFT, NOISE, strict=True)],
        of=quality(0.05, agreement=0.9),
        size_bytes=5_000_000,
        lineage=stages,
        divergence=Divergence((3, None, 7, 60, None, 1, 2, 30), 64),
        breaches=("kl_mean is 0.05 and may be at most 0.02",),
    )
    same = make_subject(
        "same",
        speeds=[speed(drift * noise) for drift, noise in zip(DRIFT, NOISE, strict=True)],
        divergence=Divergence((None,) * 8, 64),
    )
    return report_of(figures([make_subject(), int4, same]))


NOISE = (1.01, 0.99, 1.02, 0.98, 1.0)
"""What differs between variants in a round."""
