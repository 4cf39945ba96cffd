"""The report as Markdown, for a pull request or a terminal.

Owns the layout. Knows nothing of how figures come about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.comparison.figures import VariantFigures
from server.comparison.report import Report
from server.comparison.tables import Table, chain_text, overview, stages

_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>|#~$"})


def render(report: Report) -> str:
    """The whole report."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    machine = report.machine
    yield f"# Variants of {_plain(report.model)}, compared"
    yield ""
    rounds = f"{report.rounds} round{'' if report.rounds == 1 else 's'}"
    yield (
        f"Measured {report.began} on {_plain(machine.processor)} ({machine.isa}, "
        f"{machine.cores} cores, onnxruntime {machine.libraries.get('onnxruntime', '?')}) in "
        f"{rounds}. The baseline is {_plain(report.baseline.name)}."
    )
    for remark in report.remarks:
        yield f"\n> {_plain(remark)}"
    for table in overview(report):
        yield from _table(table, "##")
    for variant in report.variants:
        yield from _variant(report, variant)


def _variant(report: Report, variant: VariantFigures) -> Iterator[str]:
    yield f"\n## {_plain(variant.name)}\n"
    yield f"{_plain(chain_text(variant))}; artifact `{variant.artifact[:12]}`."
    yield from (f"\n> Over its budget: {_plain(breach)}" for breach in variant.breaches)
    found = report.findings.get(variant.name)
    if found is not None:
        yield from _list("Advantages", found.advantages)
        yield from _list("Disadvantages", found.disadvantages)
        yield from _list("No measurable difference", found.same)
        yield from _list("Too few samples to tell", found.unknown)
    yield from _table(stages(variant), "###")


def _list(title: str, sentences: Sequence[str]) -> Iterator[str]:
    if sentences or title in {"Advantages", "Disadvantages"}:
        yield f"\n**{title}**\n"
        yield from (f"- {_plain(sentence)}" for sentence in sentences or ("none measured",))


def _table(table: Table, level: str) -> Iterator[str]:
    yield f"\n{level} {table.title}\n"
    yield _row(table.columns)
    yield _row(["---", *["---:"] * (len(table.columns) - 1)])
    yield from (_row([_plain(cell) for cell in row]) for row in table.rows)
    if table.note:
        yield f"\n{_plain(table.note)}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text in which nothing is markup."""
    return " ".join(text.split()).translate(_SPECIAL)
