"""The report as one page that needs nothing else: no server, no network, no second file.

Owns the layout and the escaping: whatever came from a config or a model is text, never markup. A
policy in the page keeps the browser from loading anything. Knows nothing of how figures come
about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from server.comparison import plots
from server.comparison.figures import VariantFigures
from server.comparison.measures import duration, size
from server.comparison.page_style import STYLE
from server.comparison.report import Report
from server.comparison.tables import Table, chain_text, overview, stages

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": False}


def render(report: Report) -> str:
    """The whole page."""
    return "\n".join(_Page(report).lines()) + "\n"


class _Page:
    """One page; counts its plots, since each needs a name."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._plots = 0

    def lines(self) -> Iterator[str]:
        from plotly.offline import get_plotlyjs

        title = f"Variants of {escape(self._report.model)}, compared"
        yield "<!doctype html>"
        yield '<html lang="en">\n<head>\n<meta charset="utf-8">'
        yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
        yield f"<title>{title}</title>"
        yield f"<style>\n{STYLE}</style>"
        yield f"<script>{get_plotlyjs()}</script>"
        yield "</head>\n<body>\n<main>"
        yield f"<h1>{title}</h1>"
        yield from self._introduction()
        yield from self._pictures()
        yield "<h2>All figures</h2>"
        for table in overview(self._report):
            yield from _table(table)
        for variant in self._report.variants:
            yield from self._variant(variant)
        yield from self._method()
        yield "</main>\n</body>\n</html>"

    def _introduction(self) -> Iterator[str]:
        report, machine = self._report, self._report.machine
        facts = (
            ("Model", f"{report.model} ({report.revision[:19]})"),
            ("Baseline", report.baseline.name),
            ("Machine", machine.processor),
            ("Cores, instruction set", f"{machine.cores}, {machine.isa}"),
            ("Memory", size(machine.memory_bytes)),
            ("Software", _software(report)),
            ("Measured", report.began),
            ("Rounds", str(report.rounds)),
        )
        yield '<dl class="facts">'
        for name, value in facts:
            yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        yield "</dl>"
        for remark in report.remarks:
            yield f'<p class="remark" role="note">{escape(remark)}</p>'
        yield '<nav aria-label="Variants">'
        for variant in report.variants:
            name = escape(variant.name)
            yield f'<a href="#variant-{name}">{name}</a>'
        yield "</nav>"

    def _pictures(self) -> Iterator[str]:
        variants = self._report.variants
        yield "<h2>What is gained, and what it costs</h2>"
        yield from self._plot(
            plots.pareto(variants),
            "Quality against speed. Down and to the right is better; the larger a mark, the more "
            "bytes on disk. The dotted line joins the variants that no other beats in both. KL "
            "below 0.00001 is drawn there. Bars are intervals of 95 %.",
        )
        yield from self._plot(
            plots.effects(variants),
            "Each measure beside the baseline's, paired by round (perplexity: by document), with "
            "intervals of 95 %. More is better where the arrow points up, less where it points "
            "down. An interval that crosses the line at 1x shows no difference.",
        )

    def _variant(self, variant: VariantFigures) -> Iterator[str]:
        name, report = escape(variant.name), self._report
        is_baseline = variant is report.baseline
        yield f'<section id="variant-{name}">'
        yield f"<h2>{name}{' <small>baseline</small>' if is_baseline else ''}</h2>"
        yield (
            f'<p class="chain"><code>{escape(chain_text(variant))}</code><br>'
            f"{escape(size(variant.manifest.size_bytes))}, built in "
            f"{escape(duration(variant.build_s))}, artifact "
            f"<code>{escape(variant.artifact[:12])}</code></p>"
        )
        for breach in variant.breaches:
            yield f'<p class="remark" role="note">Over its budget: {escape(breach)}</p>'
        found = report.findings.get(variant.name)
        if found is not None:
            yield '<div class="findings">'
            yield from _list("Advantages", "good", found.advantages)
            yield from _list("Disadvantages", "bad", found.disadvantages)
            yield "</div>"
            if found.same:
                yield from _list("No measurable difference", "same", found.same)
            if found.unknown:
                yield from _list("Too few samples to tell", "same", found.unknown)
        yield from self._plot(
            plots.waterfall(variant),
            f"Stages of {variant.name}: what each one cost in quality, and the size after it. Pale "
            "bars are of the torch form, which has another number format than the artifact.",
        )
        yield from _table(stages(variant))
        yield "</section>"

    def _plot(self, figure: Any | None, caption: str) -> Iterator[str]:
        if figure is None:
            return
        self._plots += 1
        name = f"plot-{self._plots}"
        content = json.loads(figure.to_json())
        yield "<figure>"
        yield f'<div id="{name}" class="plot" role="img" aria-label="{escape(caption)}"></div>'
        yield f"<figcaption>{escape(caption)}</figcaption>"
        yield (
            f'<script>Plotly.newPlot("{name}", {_script(content["data"])}, '
            f"{_script(content['layout'])}, {_script(_CONFIG)});</script>"
        )
        yield "</figure>"

    def _method(self) -> Iterator[str]:
        yield '<section class="method"><h2>How this was measured</h2><ul>'
        for sentence in _METHOD:
            yield f"<li>{escape(sentence)}</li>"
        yield f"<li>Quality was measured on {escape(self._report.text)}.</li>"
        yield "</ul></section>"


_METHOD = """\
One server per variant, the others absent, asked over gRPC as users ask it. Variants take turns in \
every round, in an order that changes, so that a machine that drifts treats them alike; each ratio \
is of two figures from one round.
Decoding is tokens per second while all streams run, prompts left out; prefill is the tokens of \
one long prompt over the time to its first token. Engine time per token is what a variant costs \
by itself with eight streams.
Intervals of speeds: Student's t over the logarithms of the rounds' ratios. Intervals of quality: \
bootstrap over documents, each variant paired with the baseline. An advantage or a disadvantage is \
told where its interval excludes no difference, also after Holm's correction over all comparisons \
of this report, and where a ratio differs by at least 1 %.
KL is KL(original || variant) in nats over positions from 16 on. Size on disk and build time are \
exact figures of the artifact and of the time when its stages were run.
""".splitlines()


def _software(report: Report) -> str:
    libraries = report.machine.libraries
    shown = [f"{name} {libraries[name]}" for name in ("onnxruntime",) if name in libraries]
    return ", ".join([*shown, f"Python {report.machine.python}", report.machine.system])


def _list(title: str, kind: str, sentences: Sequence[str]) -> Iterator[str]:
    yield f'<div class="{kind}"><h3>{escape(title)}</h3><ul>'
    for sentence in sentences or ("none measured",):
        yield f"<li>{escape(sentence)}</li>"
    yield "</ul></div>"


def _table(table: Table) -> Iterator[str]:
    yield f'<div class="scroll"><table><caption>{escape(table.title)}</caption><thead><tr>'
    yield "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    yield "</tr></thead><tbody>"
    for first, *rest in table.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        yield f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    yield "</tbody></table></div>"
    if table.note:
        yield f'<p class="note">{escape(table.note)}</p>'


def _script(value: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
