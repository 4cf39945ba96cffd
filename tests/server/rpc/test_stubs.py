"""The generated stubs: as the .proto says, and loadable on the libraries that we allow."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[3]
STUBS = ("inference_pb2.py", "inference_pb2.pyi", "inference_pb2_grpc.py")


def allowed(name: str) -> Requirement:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = [r for r in map(Requirement, project["dependencies"]) if r.name == name]
    return found


def lowest(requirement: Requirement) -> Version:
    (found,) = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    return found


def test_stubs_are_what_the_compiler_makes(tmp_path: Path) -> None:
    """Generating again gives the committed files, byte for byte."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "."]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, "protos/inference.proto"], cwd=ROOT, check=True)
    for name in STUBS:
        made, committed = tmp_path / "protos" / name, ROOT / "protos" / name
        assert made.read_bytes() == committed.read_bytes(), f"{name}: run `make protos`"


def test_messages_load_on_every_protobuf_that_is_allowed() -> None:
    """Protobuf runs code made for its own or the previous major version, never for a later one."""
    source = (ROOT / "protos" / "inference_pb2.py").read_text(encoding="utf-8")
    match = re.search(r"Domain\.PUBLIC,\s*(\d+),\s*(\d+),\s*(\d+)", source)
    assert match is not None
    made_for = Version(".".join(match.groups()))
    requirement = allowed("protobuf")
    assert made_for <= lowest(requirement)
    assert made_for.major == 6
    assert requirement.specifier.contains("6.33.99")
    assert requirement.specifier.contains("7.0.0")
    assert not requirement.specifier.contains(f"{made_for.major + 2}.0.0")


def test_services_load_on_every_grpcio_that_is_allowed() -> None:
    """The generated service refuses a grpcio older than its compiler."""
    source = (ROOT / "protos" / "inference_pb2_grpc.py").read_text(encoding="utf-8")
    match = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", source)
    assert match is not None
    assert Version(match[1]) <= lowest(allowed("grpcio"))
