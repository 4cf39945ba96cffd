"""All three forms of a report, from planted figures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from artifacts.manifest import StageRecord
from server.comparison import report_html, report_json, report_markdown
from server.comparison.figures import figures
from server.comparison.report import Report
from tests.server.comparison.planted import DRIFT, MakeSubject, quality, report_of, speed

EVIL = "</script><img src=x onerror=alert(1)>\"'&"


class _Page(HTMLParser):
    """Tags, text outside scripts, and the scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._within = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the base class's signature
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts.append(data)
        elif self._within != "style":
            self.text += data + "\n"


def test_the_page_loads_nothing(report: Report) -> None:
    """No address is in any place that a browser would fetch, and a policy forbids it besides."""
    page = _Page(report_html.render(report))
    for tag, attributes in page.tags:
        for name in ("src", "data", "action", "poster", "srcset"):
            assert name not in attributes, tag
        if "href" in attributes:
            assert str(attributes["href"]).startswith("#variant-")
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
    assert "url(" not in "".join(
        re.findall(r"<style>.*?</style>", report_html.render(report), re.DOTALL)
    )
    (policy,) = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert str(policy).startswith("default-src 'none'; script-src 'unsafe-inline'")
    assert "http" not in str(policy)


def test_the_page_draws_every_plot_and_lists_every_finding(report: Report) -> None:
    """Pareto, ratios, and a waterfall for the chain of two stages."""
    page = _Page(report_html.render(report))
    plots = [script for script in page.scripts if script.startswith("Plotly.newPlot")]
    places = {a["id"] for _, a in page.tags if a.get("class") == "plot"}
    assert {re.match(r'Plotly.newPlot\("([^"]+)"', plot)[1] for plot in plots} == places  # type: ignore[index]
    assert len(plots) == 3
    for name in report.findings:
        for sentences in (report.findings[name].advantages, report.findings[name].disadvantages):
            assert sentences or name == "same"
            for sentence in sentences:
                assert sentence in page.text


def _evil_report(subject: MakeSubject) -> Report:
    stages = [
        StageRecord(
            stage=stage,
            method=EVIL,
            form="onnx",
            seconds=1.0,
            size_bytes=9,
            quality=quality(0.01),
            notes=(EVIL,),
        )
        for stage in ("export", "quantize")
    ]
    variants = figures(
        [
            subject(EVIL, failure=EVIL),
            subject(f"2{EVIL}", chain=({EVIL: {EVIL: EVIL}},), lineage=stages, breaches=(EVIL,)),
        ]
    )
    return report_of(variants, model=EVIL, revision=EVIL, text=EVIL, failed={EVIL: EVIL})


def test_no_name_is_markup(subject: MakeSubject) -> None:
    """Names of models, variants and stages, notes and errors are text wherever they come."""
    rendered = report_html.render(_evil_report(subject))
    page = _Page(rendered)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [a for _, a in page.tags if "onerror" in a]
    assert EVIL not in rendered
    assert page.text.count(EVIL) >= 8
    starts, ends = rendered.count("<script>"), rendered.count("</script>")
    assert starts == ends == len(re.findall(r"<script>Plotly|<script>/\*\*", rendered))


def test_unescaped_names_would_be_found(subject: MakeSubject) -> None:
    """The check above can fail."""
    rendered = report_html.render(_evil_report(subject)).replace("&lt;img", "<img", 1)
    assert [tag for tag, _ in _Page(rendered).tags if tag == "img"]


def test_markdown_keeps_its_tables_whole(subject: MakeSubject, report: Report) -> None:
    """A bar or a line break in a name ends no cell, and markup stays text."""
    text = report_markdown.render(report)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [line.replace(r"\|", "") for line in block.splitlines()]
        assert len({row.count("|") for row in rows}) == 1, block
    assert "**Advantages**" in text
    hostile = report_markdown.render(_evil_report(subject))
    assert "<img" not in hostile.replace(r"\<img", "")


def test_json_holds_every_figure(report: Report) -> None:
    """Values, intervals, corrected p-values, verdicts, rounds, lineage and sentences."""
    content: dict[str, Any] = json.loads(report_json.render(report))
    assert content["baseline"] == "baseline"
    int4 = content["variants"]["int4"]
    decoding = int4["comparisons"]["decode_1_tokens_per_second"]
    assert decoding["verdict"] == "better"
    assert decoding["low"] < 2 < decoding["high"]
    assert decoding["p"] < decoding["p_holm"] < 0.05
    assert len(int4["rounds"]) == 5
    assert [stage["stage"] for stage in int4["lineage"]] == ["prune", "quantize"]
    assert int4["findings"]["advantages"] == list(report.findings["int4"].advantages)
    assert int4["time_to_first_token_seconds"]["p50"] == pytest.approx(0.01, rel=0.3)
    assert int4["time_to_first_token_seconds"]["p90"] is None  # of 50 samples
    assert content["variants"]["baseline"]["comparisons"] == {}


def test_what_was_measured_under_load_is_marked(subject: MakeSubject) -> None:
    """In the remarks, and at each speed of that variant alone."""
    rounds = [speed(drift, others_cores=0.5 if drift == 1.0 else 0.0) for drift in DRIFT]
    report = report_of(figures([subject(), subject("busy", speeds=rounds)]))
    (remark,) = report.remarks
    assert remark.startswith("Under load: in 1 of 10 turns")
    lines = report_markdown.render(report).splitlines()
    marked = [line for line in lines if "tokens/s" in line and r"\*" in line and line[0] == "|"]
    assert [line.split("|")[1].strip() for line in marked] == ["busy"]
    assert not report_of(figures([subject()])).remarks


def test_an_interrupted_report_says_so_first(report: Report) -> None:
    """Nobody should take half a comparison for a whole one."""
    half = replace(report, complete=False)
    assert half.remarks[0].startswith("Incomplete")
    assert "Incomplete: " in report_html.render(half)
    assert "Incomplete: " not in report_html.render(report)


def test_a_variant_without_a_round_is_reported_all_the_same(subject: MakeSubject) -> None:
    """Its size and quality are known; its speed is absent."""
    lost = subject("lost", speeds=(), of=quality(0.02), failure="it crashed")
    report = report_of(figures([subject(), lost]))
    for render in (report_html.render, report_json.render, report_markdown.render):
        assert "it crashed" in render(report)
    assert "KL divergence from the original" in " ".join(report.findings["lost"].disadvantages)
