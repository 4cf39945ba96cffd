"""File, environment and flags, weak to strong; every complaint at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.config.errors import ConfigError
from server.config.fields import Config
from server.config.sources import Unset, load

GOOD = "model: demo\nvariants: {baseline: [], int8: []}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def read(
    folder: Path,
    text: str,
    environment: dict[str, str] | None = None,
    flags: dict[str, Any] | None = None,
) -> Config:
    return load(write(folder, text), environment=environment or {}, flags=flags or {})


def errors_of(folder: Path, text: str, environment: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, environment)
    return {
        error.path: f"{error.message} {error.remedy} {error.nearest}"
        for error in caught.value.errors
    }


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    """Each source overrides the weaker ones, key by key."""
    text = GOOD + "engine: {slots: 4, step_tokens: 64, threads: 1}\n"
    environment = {
        "INFERENCE_UNLIMITED_ENGINE__STEP_TOKENS": "128",
        "INFERENCE_UNLIMITED_ENGINE__THREADS": "2",
    }
    engine = read(tmp_path, text, environment, {"engine.threads": 3, "engine.slots": None}).engine
    assert (engine.slots, engine.step_tokens, engine.threads) == (4, 128, 3)
    assert engine.max_waiting == 256


def test_environment_values_are_yaml(tmp_path: Path) -> None:
    """Lists, nothing and sizes can be said in a variable."""
    config = read(
        tmp_path,
        GOOD + "engine: {max_length: 64}\n",
        {
            "INFERENCE_UNLIMITED_VARIANTS__INT4": "[{quantize: {bits: 4}}]",
            "INFERENCE_UNLIMITED_ENGINE__MAX_LENGTH": "null",
            "INFERENCE_UNLIMITED_ENGINE__KV_BYTES": "2GiB",
        },
    )
    assert list(config.variants) == ["baseline", "int8", "int4"]
    assert config.variants["int4"].chain == [{"quantize": {"bits": 4}}]
    assert config.engine.max_length is None
    assert config.engine.kv_bytes == 2 << 30


def test_variables_that_are_not_configuration_are_left_alone(tmp_path: Path) -> None:
    """Kubernetes names variables after a Service; they must not stop a pod from starting."""
    environment = {
        "INFERENCE_UNLIMITED_SERVICE_HOST": "10.0.0.1",
        "INFERENCE_UNLIMITED_SERVICE_PORT_GRPC": "50051",
        "INFERENCE_UNLIMITED_PORT": "tcp://10.0.0.1:50051",
        "INFERENCE_UNLIMITED_PORT_50051_TCP_ADDR": "10.0.0.1",
        "INFERENCE_UNLIMITED_TARGET": "localhost:50051",
    }
    assert read(tmp_path, GOOD, environment) == read(tmp_path, GOOD)
    assert "prot" in errors_of(tmp_path, GOOD, {"INFERENCE_UNLIMITED_PROT": "1"})


def test_relative_paths_of_a_file_are_relative_to_it(tmp_path: Path) -> None:
    """A config can be used from any working directory."""
    config = read(tmp_path, GOOD + "evaluation: {text: held.jsonl}\nstore: artifacts\n", flags={})
    assert config.evaluation is not None
    assert config.evaluation.text == str(tmp_path / "held.jsonl")
    assert config.store == str(tmp_path / "artifacts")


def test_a_local_model_folder_is_relative_to_the_file_and_a_hub_id_is_not(
    tmp_path: Path,
) -> None:
    """``./name`` is a folder; ``owner/name`` is the hub's."""
    local = read(tmp_path, "model: ./mine\nvariants: {a: []}\n")
    hub = read(tmp_path, "model: owner/name\nvariants: {a: []}\n")
    assert (local.model, hub.model) == (str(tmp_path / "mine"), "owner/name")


def test_unset_takes_a_value_of_the_file_away(tmp_path: Path) -> None:
    """Another model must not be judged on the texts of the file's."""
    config = read(
        tmp_path, GOOD + "evaluation: {text: x.txt}\n", flags={"model": "m", "evaluation": Unset}
    )
    assert (config.model, config.evaluation) == ("m", None)


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    """Nobody should have to start five times to find five mistakes."""
    errors = errors_of(
        tmp_path,
        "modle: demo\n"
        "variants: {Not_This: [], baseline: []}\n"
        "engine: {slotz: 3, slots: 0, kv_bytes: many}\n"
        "traffic: {basline: 1}\n"
        "server: {grpc_port: 9464}\n",
        {"INFERENCE_UNLIMITED_ENGINE__THREADS": "all"},
    )
    assert set(errors) == {
        "modle",
        "model",
        "variants.Not_This",
        "engine.slotz",
        "engine.slots",
        "engine.kv_bytes",
        "engine.threads",
        "traffic.basline",
        "server.ops_port",
    }
    assert "'model'" not in errors["modle"]
    assert errors["modle"].endswith("model")
    assert errors["engine.slotz"].endswith("slots")
    assert errors["traffic.basline"].endswith("baseline")
    assert "INFERENCE_UNLIMITED_ENGINE__THREADS" in errors["engine.threads"]


def test_the_message_shows_path_remedy_and_nearest_name(tmp_path: Path) -> None:
    """What is printed is enough to mend the file."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, GOOD + "engine: {slotz: 3}\n")
    message = str(caught.value)
    assert "engine.slotz: unknown key. Did you mean 'slots'? Known keys here:" in message
    assert str(tmp_path / "config.yaml") in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: demo\nvariants: {a: [], a: []}\n", "given twice"),
        ("- model\n", "must hold a mapping"),
        ("model: [demo\n", "is not valid YAML: line 2"),
        ("model: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        ("", "is required"),
        ("model: demo\nvariants: {}\n", "variants"),
        (GOOD + "traffic: {baseline: 0}\n", "all weights are 0"),
        (GOOD + "traffic: {baseline: .nan}\n", "traffic.baseline"),
    ],
)
def test_what_is_no_config_is_refused_with_its_reason(tmp_path: Path, text: str, said: str) -> None:
    """A file that cannot be understood names the place; nothing in it is executed."""
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A wrong path on the command line is told as such."""
    with pytest.raises(ConfigError, match=r"nope\.yaml cannot be read: No such file"):
        load(tmp_path / "nope.yaml", environment={}, flags={})


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    """``engine:`` with everything below it commented out is no error."""
    assert read(tmp_path, GOOD + "engine:\nserver:\n").engine.slots == 16


def test_the_demo_config_is_valid() -> None:
    """``serve`` without a file works."""
    path = Path(__file__).parents[3] / "demo" / "config.yaml"
    config = load(path, environment={}, flags={})
    assert list(config.variants) == ["baseline", "int8", "int4"]
    assert config.evaluation is not None
    assert Path(config.evaluation.text).is_file()


def test_a_config_of_a_later_form_is_refused(tmp_path: Path) -> None:
    """With what it needs; one that says nothing is of the first form."""
    assert read(tmp_path, GOOD).version == read(tmp_path, f"version: 1\n{GOOD}").version == 1
    told = errors_of(tmp_path, f"version: 2\n{GOOD}")
    assert list(told) == ["version"]
    assert "version 2 is of a later program, and this one reads version 1" in told["version"]
