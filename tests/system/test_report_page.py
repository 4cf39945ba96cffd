"""The report in a real browser: it draws its plots, says nothing wrong, and loads nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.comparison import report_html
from tests.server.comparison.planted import planted_report

pytestmark = pytest.mark.system

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
PLOTS = 3


@dataclass(frozen=True, slots=True)
class Seen:
    """What a browser made of a page: the document, and what it had to say."""

    document: str
    console: str

    @property
    def drawn(self) -> int:
        """Plots with marks, lines or bars in them."""
        parts = re.split(r'<div id="plot-\d+"', self.document)[1:]
        return sum(bool(re.search(r'class="(point|points|bars?|trace )', part)) for part in parts)


def browse(page: Path, *arguments: str) -> Seen:
    """Open a page without a screen."""
    browser = next(found for name in BROWSERS if (found := shutil.which(name)))
    done = subprocess.run(
        [
            browser,
            "--no-sandbox",  # root in a container; the page is our own
            "--disable-gpu",
            "--headless",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--virtual-time-budget=3000",
            "--window-size=1280,5200",
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return Seen(done.stdout, console)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_html.render(planted_report()), encoding="utf-8")
    return path


def test_the_page_draws_all_plots_without_a_complaint(page: Path) -> None:
    """Pareto, ratios, waterfall; the policy in the page is in nobody's way."""
    seen = browse(page, "--dump-dom")
    assert seen.drawn == PLOTS
    assert seen.console == ""


def test_a_page_that_breaks_would_be_found(page: Path) -> None:
    """The check above can fail: without the library nothing is drawn, and the console says so."""
    broken = page.with_name("broken.html")
    broken.write_text(page.read_text(encoding="utf-8").replace("Plotly.newPlot(", "Plot.no("))
    seen = browse(broken, "--dump-dom")
    assert seen.drawn == 0
    assert "Plot is not defined" in seen.console


def test_the_browser_refuses_whatever_would_be_loaded(page: Path) -> None:
    """Should an address ever slip into the page, the policy holds."""
    leaking = page.with_name("leaking.html")
    text = page.read_text(encoding="utf-8")
    leaking.write_text(text.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">', 1))
    assert "Content Security Policy" in browse(leaking, "--dump-dom").console


def test_the_page_can_be_looked_at(page: Path) -> None:
    """A picture of it, for whoever wants to see; it is not one colour."""
    picture = page.with_name("report.png")
    browse(page, f"--screenshot={picture}")
    assert picture.stat().st_size > 100_000
