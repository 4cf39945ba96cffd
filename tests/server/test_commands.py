"""The commands' own work: which config is read, what is printed, how failures end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from artifacts.errors import StoreError
from artifacts.layout import Layout
from artifacts.manifest import FileEntry, Manifest
from artifacts.protocol import FieldError, PlannedVariant, PlanResponse
from artifacts.store import Store
from server.catalog import BuildProgress, VariantLimits, VariantState, VariantView
from server.cli import application
from server.commands.options import config_reader, failures, verified
from server.commands.serve import _Greeting, _process_start_s
from server.config.errors import ConfigError
from server.config.fields import Config
from server.exit_codes import ExitCode
from server.planning import Planned
from server.progress import ProgressBars
from server.variants import Variants

LIMITS = VariantLimits(max_length=64, slots=2, kv_budget_tokens=100, max_waiting=1)


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("INFERENCE_UNLIMITED_")]:
        monkeypatch.delenv(name)


def test_without_a_config_the_demo_is_served() -> None:
    """``serve`` alone is the first thing that anybody tries."""
    source, read = config_reader(None, None, {})
    assert source.endswith("config.yaml")
    config = read()
    assert config.model == "demo"
    assert config.evaluation is not None


def test_another_model_takes_the_demo_s_variants_but_not_its_texts() -> None:
    """The demo's texts are Python; nobody wants a chat model judged on them."""
    config = config_reader(None, "owner/name", {})[1]()
    assert config.model == "owner/name"
    assert list(config.variants) == ["baseline", "int8", "int4"]
    assert config.evaluation is None


def test_a_model_for_a_config_leaves_its_texts(tmp_path: Path) -> None:
    """Who names both means both."""
    path = tmp_path / "c.yaml"
    path.write_text("model: demo\nvariants: {a: []}\nevaluation: {text: t.txt}\n")
    config = config_reader(path, "owner/name", {"server.grpc_port": 7})[1]()
    assert (config.model, config.server.grpc_port) == ("owner/name", 7)
    assert config.evaluation is not None


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (ConfigError("c.yaml", [FieldError(path="a", message="is wrong")]), ExitCode.USAGE),
        (StoreError("The disk is full.", remedy="Free some."), ExitCode.FAILURE),
    ],
)
def test_expected_failures_end_with_their_code_and_words(
    failure: Exception, code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for what a user can mend."""
    with pytest.raises(typer.Exit) as ended, failures():
        raise failure
    assert ended.value.exit_code == code
    assert str(failure) in capsys.readouterr().err


def test_bugs_keep_their_traceback() -> None:
    """What nobody expected is not dressed up."""
    with pytest.raises(ZeroDivisionError), failures():
        raise ZeroDivisionError


def test_the_greeting_is_said_once_with_a_reachable_address(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A wildcard is where to listen, not where to ask."""
    from server.listeners import Addresses

    greeting = _Greeting("demo")
    greeting.listening(Addresses("0.0.0.0", 50051, 8000, "0.0.0.0", 9464))  # noqa: S104 - not bound
    for name in ("baseline", "int8"):
        greeting.ready(VariantView(name, VariantState.LOADING))
        greeting.ready(VariantView(name, VariantState.READY, limits=LIMITS))
    said = capsys.readouterr().out
    assert "gRPC     127.0.0.1:50051" in said
    assert "HTTP     http://127.0.0.1:8000/v1" in said
    assert "http://127.0.0.1:9464/metrics" in said
    assert said.count("generate --prompt 'def fibonacci(n):' --target 127.0.0.1:50051") == 1


@pytest.mark.parametrize("host", ["::", "::1"])
def test_the_greeting_can_be_pasted_for_ipv6(capsys: pytest.CaptureFixture[str], host: str) -> None:
    """A literal address needs brackets before a port."""
    from server.listeners import Addresses

    greeting = _Greeting("demo")
    greeting.listening(Addresses(host, 50051, None, host, 9464))
    greeting.ready(VariantView("baseline", VariantState.READY, limits=LIMITS))
    said = capsys.readouterr().out
    assert "--target [::1]:50051" in said
    assert "http://[::1]:9464/metrics" in said
    assert "HTTP " not in said


def test_the_process_s_start_lies_before_now() -> None:
    """Start-up time includes the interpreter's own."""
    import time

    assert 0 < time.monotonic() - _process_start_s() < 86_400


def test_progress_bars_follow_a_build_to_its_end() -> None:
    """One bar while a variant is built, none before and after."""
    building = VariantView(
        "a",
        VariantState.BUILDING,
        progress=BuildProgress(stage="export", stage_index=1, stage_count=4, fraction=0.5),
    )
    with ProgressBars() as bars:
        bars.show(VariantView("a", VariantState.PENDING))
        assert bars._tasks == {}
        bars.show(building)
        (task,) = bars._progress.tasks
        assert task.completed == pytest.approx(1.5 / 4)
        bars.show(VariantView("a", VariantState.READY))
        assert bars._progress.tasks == []


@pytest.fixture
def planned(manifest: Manifest, tmp_path: Path) -> Planned:
    """Two variants whose artifacts are in a store, and one that is to be built."""
    store = Store(tmp_path / "store")
    store.layout.create()
    variants = {"new": PlannedVariant(recipe="n" * 64, chain=())}
    for name, recipe in (("whole", "a" * 64), ("damaged", "b" * 64)):
        files = []
        for file, content in (("model.onnx", b""), ("model.onnx.data", name.encode())):
            (tmp_path / file).write_bytes(content)
            digest, size = store.add_blob(tmp_path / file)
            files.append(FileEntry(name=file, size_bytes=size, sha256=digest))
        graph = manifest.graph.model_copy(update={"forms": None})
        update = {"recipe": recipe, "files": tuple(files), "graph": graph}
        artifact = store.publish(manifest.model_copy(update=update))
        store.open(artifact)
        variants[name] = PlannedVariant(recipe=recipe, chain=(), artifact=artifact)
    blob = store.open(variants["damaged"].artifact or "").path("model.onnx.data")
    state = blob.stat()
    blob.chmod(0o644)
    blob.write_bytes(b"DAMAGED")
    os.utime(blob, ns=(state.st_atime_ns, state.st_mtime_ns))
    config = Config(model="demo", variants={name: [] for name in variants}, store=str(store.root))
    return Planned(config, PlanResponse(variants=variants))


def test_verifying_finds_what_the_store_s_record_does_not_know(planned: Planned) -> None:
    """Size and time of the damaged file are as they were; what is whole stays found."""
    before = planned.response.variants
    after = verified(planned).response.variants
    assert {name: variant.artifact for name, variant in after.items()} == {
        "new": None,
        "whole": before["whole"].artifact,
        "damaged": None,
    }
    assert after["damaged"].recipe == before["damaged"].recipe


@pytest.mark.parametrize("command", ["serve", "build"])
@pytest.mark.parametrize("flags", [[], ["--verify"]])
def test_the_flag_reaches_what_it_is_about(
    monkeypatch: pytest.MonkeyPatch, command: str, flags: list[str]
) -> None:
    """Both commands verify when they are told to, and only then."""
    asked: list[object] = []

    async def ask(*_: object, verify: bool, **__: object) -> None:
        asked.append(verify)
        raise StoreError("Enough.")

    monkeypatch.setattr(f"server.commands.{command}._{command}", ask)
    CliRunner().invoke(application(), [command, "any.yaml", *flags])
    assert asked == [bool(flags)]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("It was killed.", "error: int4: It was killed."),
        ("variants.int4.chain[0].prune: No.", "error: variants.int4.chain[0].prune: No."),
    ],
)
def test_a_failed_build_names_its_variant_once(
    monkeypatch: pytest.MonkeyPatch, error: str, told: str
) -> None:
    """A message that begins with the field at fault has said which variant it is."""

    async def fail(*_: object, **__: object) -> Variants:
        variants = Variants(["int4"], {})
        variants.change("int4", state=VariantState.FAILED, error=error)
        return variants

    monkeypatch.setattr("server.commands.build._build", fail)
    done = CliRunner().invoke(application(), ["build", "any.yaml"])
    assert done.exit_code == ExitCode.FAILURE
    assert done.stderr.splitlines() == [told]


def test_prune_store_says_what_it_would_remove_and_then_removes_it(tmp_path: Path) -> None:
    """A dry run is the same list without the loss."""
    layout = Layout(tmp_path / "store")
    layout.create()
    draft = layout.tmp / "draft"
    draft.write_bytes(b"x" * 1_500_000)
    os.utime(draft, (0, 0))  # nobody is writing it any more
    arguments = ["prune-store", "--store", str(layout.root)]
    dry = CliRunner().invoke(application(), [*arguments, "--dry-run"])
    assert (dry.exit_code, draft.exists()) == (0, True)
    assert "tmp/draft" in dry.output
    assert "1.5 MB would be freed" in dry.output
    real = CliRunner().invoke(application(), arguments)
    assert (real.exit_code, draft.exists()) == (0, False)


@pytest.mark.parametrize("command", ["serve", "build", "generate", "variants", "prune-store", ""])
def test_every_command_explains_itself(command: str) -> None:
    """--help says what a command does and how it ends."""
    shown = CliRunner().invoke(application(), [*([command] if command else []), "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output
    assert "xit code" in shown.output or not command


def test_wrong_usage_ends_with_2() -> None:
    """As every command line does."""
    assert CliRunner().invoke(application(), ["serve", "--no-such-flag"]).exit_code == 2
