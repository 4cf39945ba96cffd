"""Tables of a run, for the terminal and as Markdown for the README.

Owns which figures stand where. Knows nothing of how they were taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks import lineup
from benchmarks.bars import judge
from benchmarks.samples import Measure, Samples
from benchmarks.serving_results import Results
from benchmarks.settings import STREAMS
from server.comparison.load import QUIET_CORES
from server.comparison.machine import Machine

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Table:
    """A title, a header and rows of the same length."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As Markdown; the first column is left, the others right."""
        lines = [f"### {self.title}", "", _line(self.header)]
        lines.append(_line(("---", *("---:" for _ in self.header[1:]))))
        return "\n".join([*lines, *(_line(row) for row in self.rows)])


def tables(results: Results) -> Iterator[Table]:
    """All tables of a run."""
    settings = results.settings
    yield Table(
        f"Peers: {results.shape} ({results.parameters / 1e6:.0f}M parameters, random weights), "
        f"{settings.prompt_tokens} tokens in, {settings.new_tokens} out, "
        f"{settings.threads} threads",
        (
            "",
            "tokens/s, 1 stream",
            "x optimum",
            f"tokens/s, {STREAMS} streams",
            "x optimum",
            f"ms to first token, {settings.long_prompt_tokens} tokens in",
            "peak memory, MiB",
            "cold start, s",
            "warm start, s",
        ),
        tuple(_peer_rows(results)),
    )
    yield Table(
        "What gRPC costs: server against its engine driven in-process",
        ("", "gRPC, tokens/s", "in-process, tokens/s", "ratio", "client's share of CPU time"),
        tuple(_grpc_rows(results.samples)),
    )
    yield Table(
        "Variants",
        ("", "artifact, MiB", "KL to the original, nats", "top-1 agreement", "build's peak, MiB"),
        tuple(_variant_rows(results)),
    )
    yield Table(
        "Bars",
        ("", "wanted", "measured: median (least to most)", ""),
        tuple(
            (bar.title, bar.wanted, bar.measured, bar.verdict)
            for bar in judge(results.samples, results.agreement, results.agreement_wanted)
        ),
    )


def notes(results: Results) -> Iterator[str]:
    """What must be said beside the tables."""
    samples = results.samples
    yield where(results.created, results.machine)
    for peer, versions in results.versions.items():
        yield f"{peer}: {versions_of(versions)}."
    yield (
        f"Medians of {results.settings.rounds} rounds taken in turns; ratios are medians of each "
        f"round's ratio. Peers serve {STREAMS} prompts one after another."
    )
    batched = samples.spread(lineup.TRANSFORMERS, Measure.EIGHT_BATCHED)
    if batched is not None:
        yield (
            f"transformers with all {STREAMS} prompts as one batch that begins and ends together: "
            f"{batched.median:.1f} tokens/s."
        )
    wanted = results.agreement_wanted
    same = [name for name, count in results.agreement.items() if count >= wanted]
    if same:
        yield f"The same {wanted} greedy tokens from: {', '.join(same)}."
    for name, count in results.agreement.items():
        if count < wanted:
            yield f"NOT COMPARABLE: {name} gave other tokens than the reference from {count} on."
    for name, why in results.failures.items():
        yield f"FAILED: {name} was left out: {why.partition(';')[0]}"
    timed = [each for each in samples if each.measure not in (Measure.PEAK, Measure.COLD_PEAK)]
    disturbed = sum(sample.others_cores > QUIET_CORES for sample in timed)
    if disturbed:
        yield (
            f"DISTURBED: {disturbed} of {len(timed)} figures were taken while others used more "
            f"than {QUIET_CORES:g} cores."
        )


def where(created: str, machine: Machine) -> str:
    """When and on which machine a run was made."""
    return (
        f"{created}, {machine.processor} ({machine.isa}), {machine.cores} cores, "
        f"{machine.memory_bytes / (1 << 30):.0f} GiB, {machine.system}, Python {machine.python}; "
        f"{versions_of(machine.libraries)}."
    )


def versions_of(libraries: Mapping[str, str]) -> str:
    """As a list in a sentence."""
    return ", ".join(f"{name} {version}" for name, version in libraries.items())


def document(tables: Iterable[Table], notes: Iterable[str]) -> str:
    """Tables and notes as Markdown."""
    parts = [table.markdown() for table in tables]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]) + "\n"


def markdown(results: Results) -> str:
    """Tables and notes for a README."""
    return document(tables(results), notes(results))


def show(results: Results, console: Console) -> None:
    """Tables and notes for a terminal."""
    for table in tables(results):
        rich = RichTable(title=table.title, title_justify="left")
        for index, name in enumerate(table.header):
            rich.add_column(name, justify="right" if index else "left")
        for row in table.rows:
            rich.add_row(*row)
        console.print(rich)
    for note in notes(results):
        console.print(note, highlight=False, markup=False)


def _peer_rows(results: Results) -> Iterator[tuple[str, ...]]:
    samples = results.samples
    for name, label in lineup.LABELS.items():
        if name in lineup.ENGINES or samples.spread(name, Measure.ONE_STREAM) is None:
            continue
        differs = results.agreement.get(name, 0) < results.agreement_wanted
        mark = " (not comparable)" if name in results.agreement and differs else ""
        yield (
            label + mark,
            _figure(samples, name, Measure.ONE_STREAM, "{:.1f}"),
            _ratio(samples, name, Measure.ONE_STREAM, lineup.OPTIMUM),
            _figure(samples, name, Measure.EIGHT_STREAMS, "{:.1f}"),
            _ratio(samples, name, Measure.EIGHT_STREAMS, lineup.OPTIMUM),
            _figure(samples, name, Measure.FIRST_TOKEN, "{:.0f}", 1e3),
            _figure(samples, name, Measure.PEAK, "{:.0f}", 1 / _MIB),
            _figure(samples, name, Measure.COLD_START, "{:.1f}"),
            _figure(samples, name, Measure.WARM_START, "{:.1f}"),
        )


def _grpc_rows(samples: Samples) -> Iterator[tuple[str, ...]]:
    for engine, served in lineup.ENGINES.items():
        for measure, streams in ((Measure.DUEL_ONE, 1), (Measure.DUEL_EIGHT, STREAMS)):
            share = samples.client_share(served, measure)
            if samples.ratio(measure, served, engine) is not None:
                yield (
                    f"{served}, {streams} streams" if streams > 1 else f"{served}, 1 stream",
                    _figure(samples, served, measure, "{:.1f}"),
                    _figure(samples, engine, measure, "{:.1f}"),
                    _ratio(samples, served, measure, engine),
                    "" if share is None else f"{share:.1%}",
                )


def _variant_rows(results: Results) -> Iterator[tuple[str, ...]]:
    for name, variant in results.variants.items():
        kl_mean, top1 = variant["kl_mean"], variant["top1_agreement"]
        yield (
            lineup.LABELS[name],
            f"{variant['size_bytes'] / _MIB:.0f}",
            "" if kl_mean is None else f"{kl_mean:.4f}",
            "" if top1 is None else f"{top1:.1%}",
            _figure(results.samples, name, Measure.COLD_PEAK, "{:.0f}", 1 / _MIB),
        )


def _figure(samples: Samples, name: str, measure: Measure, form: str, scale: float = 1.0) -> str:
    figure = samples.spread(name, measure)
    return "" if figure is None else form.format(figure.median * scale)


def _ratio(samples: Samples, name: str, measure: Measure, base: str) -> str:
    ratio = samples.ratio(measure, name, base)
    return "" if ratio is None else f"{ratio.median:.2f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
