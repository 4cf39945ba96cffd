"""Plans: quick, light, and with every error at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.optimizers.conftest import BuiltVariants, Child

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "numpy", "huggingface_hub")


def test_no_stage_imports_anything_heavy(child: Child) -> None:
    """A stage's file is read to check its fields, in chains of every method."""
    program = (
        "import sys\n"
        "from optimizers.stages import TABLE\n"
        "assert all(entry.load() for entry in TABLE)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env=dict(child.environment),
        cwd=child.root,
        check=True,
    )
    assert done.stdout.strip() == b"[]"


def test_plan_imports_nothing_heavy(child: Child, tiny_llama_folder: Path) -> None:
    """Every start of the server waits for it, so it must not wait for torch."""
    request = {
        "model": str(tiny_llama_folder),
        "store": str(child.store),
        "variants": {
            "int4": [{"prune": {"amount": 0.5}}, {"quantize": {"method": "weight_only"}}],
            "int8": [{"quantize": {"method": "dynamic"}}],
            "small": [{"distill": {"substitute": str(tiny_llama_folder)}}],
        },
    }
    program = (
        "import sys\n"
        "from optimizers.__main__ import main\n"
        "assert main(['plan']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(request).encode(),
        capture_output=True,
        env=dict(child.environment),
        cwd=child.root,
        check=True,
    )
    assert done.stderr.decode().splitlines()[-1] == "[]"
    assert len(json.loads(done.stdout)["variants"]) == 3


@pytest.mark.slow
def test_plan_is_quick(child: Child, tiny_llama_folder: Path) -> None:
    """A start pays well under half a second for it, in processor time."""
    import resource

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(5):
        before = spent()
        child.plan(str(tiny_llama_folder), {"a": [{"quantize": {"method": "dynamic"}}]})
        times.append(spent() - before)
    assert sorted(times)[2] < 0.4


def test_errors_of_all_fields_come_together(child: Child, tmp_path: Path) -> None:
    """Model, texts and every variant are judged in one go; right variants need a right model."""
    plan = child.plan(
        str(tmp_path / "nowhere"),
        {"bad": [{"quantise": {}}], "good": []},
        evaluation={"text": str(tmp_path / "none.jsonl")},
        calibration={"text": str(tmp_path)},
    )
    paths = [error.path for error in plan.errors]
    assert paths == [
        "model",
        "calibration.text",
        "evaluation.text",
        "variants.bad.chain[0].quantise",
    ]
    assert all(error.remedy for error in plan.errors)
    assert plan.errors[3].nearest == "quantize"
    assert not plan.variants


def test_variants_without_errors_are_planned_beside_wrong_ones(
    child: Child, tiny_llama_folder: Path
) -> None:
    """One wrong chain takes nothing from the others."""
    plan = child.plan(str(tiny_llama_folder), {"bad": [{"quantise": {}}], "good": []})
    assert set(plan.variants) == {"good"}
    assert plan.revision is not None
    assert plan.revision.startswith("sha256:")


def test_a_substitute_is_pinned_in_the_chain(child: Child, tiny_llama_folder: Path) -> None:
    """The recipe depends on what the other model is, not on how it is called."""
    plan = child.plan(
        str(tiny_llama_folder), {"s": [{"distill": {"substitute": str(tiny_llama_folder)}}]}
    )
    assert plan.variants["s"].chain[0]["distill"]["revision"] == plan.revision


def test_a_substitute_that_is_missing_is_told_with_its_path(
    child: Child, tiny_llama_folder: Path
) -> None:
    """The path leads to the field inside the stage."""
    plan = child.plan(str(tiny_llama_folder), {"s": [{"distill": {"substitute": "/none"}}]})
    (error,) = plan.errors
    assert error.path == "variants.s.chain[0].distill.substitute"


def test_a_request_that_is_none_is_answered(child: Child) -> None:
    """Even then the answer is a plan with errors."""
    plan = child.plan("demo", {}, surprise=True)
    assert [error.path for error in plan.errors] == ["surprise"]


def test_a_store_that_cannot_be_made_is_told(
    child: Child, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """The field is the store's."""
    (tmp_path / "file").write_text("")
    plan = type(child)(tmp_path / "file" / "store").plan(str(tiny_llama_folder), {"v": []})
    assert [error.path for error in plan.errors] == ["store"]


def test_a_store_that_cannot_be_made_hides_no_other_error(
    child: Child, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """Its error stands beside those of model and chains."""
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file" / "store", Path("~nouser/store"), tmp_path / ("s" * 400)):
        plan = type(child)(store).plan(
            str(tiny_llama_folder), {"bad": [{"quantise": {}}]}, evaluation={"text": "none.txt"}
        )
        assert [error.path for error in plan.errors] == [
            "store",
            "evaluation.text",
            "variants.bad.chain[0].quantise",
        ]


def test_a_store_that_cannot_be_read_is_told_once(child: Child, tiny_llama_folder: Path) -> None:
    """Every variant asks it, and its error is one."""
    recipe = child.plan(str(tiny_llama_folder), {"v": []}).variants["v"].recipe
    (child.store / "recipes" / f"{recipe}.json").mkdir()
    plan = child.plan(str(tiny_llama_folder), {"v": [], "w": [], "bad": [{"quantise": {}}]})
    assert [error.path for error in plan.errors] == ["store", "variants.bad.chain[0].quantise"]


def test_without_a_store_chains_are_judged_and_nothing_is_made(
    child: Child, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """A config that is wrong elsewhere need not have a store yet."""
    plan = child.plan(str(tiny_llama_folder), {"bad": [{"quantise": {}}], "v": []}, store=None)
    assert [error.path for error in plan.errors] == ["variants.bad.chain[0].quantise"]
    assert plan.variants["v"].artifact is None
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_no_plan(child: Child, tiny_llama_folder: Path) -> None:
    """What a plan would keep is only for the next one's sake."""
    assert not child.plan(str(tiny_llama_folder), {"v": []}).errors
    for record in (child.store / "sources").iterdir():
        record.unlink()
    request = {"model": str(tiny_llama_folder), "variants": {"v": []}, "store": str(child.store)}
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "from optimizers.__main__ import main\n"
        "sys.exit(main(['plan']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(request).encode(),
        capture_output=True,
        env={**child.environment, "PYTHONDONTWRITEBYTECODE": "1", "COVERAGE_PROCESS_START": ""},
        cwd=child.root,
        check=False,
    )
    assert set(json.loads(done.stdout)["variants"]) == {"v"}, done.stderr.decode()
    assert list((child.store / "sources").iterdir()) == []


@pytest.mark.parametrize("name", ["~nouser/x.txt", "/" + "x" * 400 + ".txt"])
@pytest.mark.parametrize("field", ["model", "evaluation"])
def test_names_that_cannot_be_looked_up_are_errors_of_their_field(
    child: Child, tiny_llama_folder: Path, name: str, field: str
) -> None:
    """The home of nobody, or a name that no file can have, stands beside the other errors."""
    model = name if field == "model" else str(tiny_llama_folder)
    text = name if field == "evaluation" else str(Path(__file__).with_name("none.txt"))
    plan = child.plan(model, {"bad": [{"quantise": {}}]}, evaluation={"text": text})
    wanted = ["evaluation.text", "variants.bad.chain[0].quantise"]
    assert [error.path for error in plan.errors] == ["model", *wanted][-2 - (field == "model") :]
    assert all(error.remedy for error in plan.errors)


def test_what_nobody_thought_of_is_an_error_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parent gets an answer, and the log the traceback."""
    from optimizers import __main__ as program
    from optimizers import plan as planning

    def fail(_: Any) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(planning, "plan", fail)
    (error,) = program._planned(b'{"model": "demo", "variants": {}}').errors
    assert "ZeroDivisionError: by zero" in error.message
    assert "log" in error.remedy
    assert "Traceback" in capsys.readouterr().err


def test_a_stored_artifact_is_named(built: BuiltVariants) -> None:
    """The server needs no build when the recipe has been built."""
    assert all(planned.artifact is None for planned in built.plan.variants.values())
    again = built.child.plan(built.model, {"x": [{"quantize": {"method": "dynamic"}}]})
    assert again.variants["x"].artifact == built.manifest("int8").digest


def test_a_folders_revision_is_its_content(
    child: Child, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """Moving a folder changes nothing, another byte does, and files that are not read do not."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama_folder, copy)

    def revision() -> str | None:
        return child.plan(str(copy), {"v": []}).revision

    first = revision()
    assert first == child.plan(str(tiny_llama_folder), {"v": []}).revision
    (copy / "notes.txt").write_text("not read")
    assert revision() == first
    (copy / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert revision() != first
