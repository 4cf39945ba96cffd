"""Which text quality is judged on, and that figures are computed once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from artifacts.errors import TextError
from artifacts.layout import Layout
from artifacts.manifest import Quality
from optimizers.quality import Judge
from optimizers.results import Results
from optimizers.sources import Source, fetch
from optimizers.torch_models import load_module, sample_text

if TYPE_CHECKING:
    from tests.optimizers.conftest import BuiltVariants


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "store")
    layout.create()
    return layout


def _source(folder: Path, layout: Layout) -> Source:
    return fetch(str(folder), None, layout=layout, offline=True, report=lambda *_: None)


def test_without_a_users_text_the_original_writes_one(
    tiny_llama_folder: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written once, judged without perplexity, and the original is not away from itself."""
    monkeypatch.setattr("optimizers.quality.token_budget", lambda *_: 256)
    source = _source(tiny_llama_folder, layout)
    said: list[str] = []

    def report(_: float, message: str) -> None:
        said.append(message)

    for _ in range(2):
        judge = Judge(Results(layout), source, None, 1)
        quality = judge.torch("key", tiny_llama_folder, report)
        assert quality.kl_mean < 1e-6
        assert quality.perplexity is None
        assert quality.text_sha256 is None
        assert quality.documents == 2
    assert said.count("writing an evaluation text") == 1
    assert said.count("measuring") == 1


def test_sampled_text_is_the_same_every_time(tiny_llama_folder: Path) -> None:
    """A seed makes variants comparable, and the text is not one token over and over."""
    module = load_module(tiny_llama_folder)
    first = sample_text(module, documents=2, length=40, seed=1)
    assert sample_text(module, documents=2, length=40, seed=1) == first
    assert sample_text(module, documents=2, length=40, seed=2) != first
    assert [len(document) for document in first] == [40, 40]
    assert len(np.unique(first)) > 20


def test_a_text_that_is_too_short_is_told(
    tiny_llama_folder: Path, layout: Layout, tmp_path: Path
) -> None:
    """Three words are no evaluation."""
    path = tmp_path / "short.txt"
    path.write_text("too short\n")
    judge = Judge(Results(layout), _source(tiny_llama_folder, layout), str(path), 1)
    with pytest.raises(TextError, match="long enough"):
        judge.torch("key", tiny_llama_folder, lambda *_: None)


def test_measuring_again_without_torch_gives_the_same_figures(
    built: BuiltVariants, evaluation: Path
) -> None:
    """``python -m artifacts.measure`` compares two stored artifacts and never loads torch."""
    program = (
        "import sys\n"
        "from artifacts.measure import main\n"
        "code = main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    arguments = ["--store", str(built.store.root), "--text", str(evaluation), "--threads", "1"]
    arguments += ["--artifact", built.manifest("int4").digest]
    arguments += ["--reference", built.manifest("baseline").digest]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        env=dict(built.child.environment),
        cwd=built.child.root,
        check=True,
    )
    measured = Quality.model_validate(json.loads(done.stdout))
    expected = built.manifest("int4").lineage[-1].quality
    assert expected is not None
    assert measured.positions == expected.positions
    assert measured.kl_mean == pytest.approx(expected.kl_mean, rel=1e-2)
    assert measured.perplexity == pytest.approx(expected.perplexity, rel=1e-3)
