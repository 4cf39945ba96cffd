"""The images, built for real and started in their own root file systems.

``benchmarks.buildah`` says what of a container that is; the figures are ``benchmarks.image``'s.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from benchmarks.buildah import Buildah, Image
from benchmarks.image import FOLDER, LOOPBACK, PORT, VOLUME_OWNER
from protos import inference_pb2 as pb
from server.client import UnreachableError, connect

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]

PLACE = "/var/lib/inference-unlimited"
OPEN = {**LOOPBACK, "INFERENCE_UNLIMITED_SERVER__ALLOW_ANONYMOUS": "true"}
TARGET = f"127.0.0.1:{PORT}"
HEAVY = ("torch", "transformers", "sympy", "pip")


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Image]]:
    """Both, mounted."""
    buildah = Buildah(FOLDER)
    with ExitStack() as stack:
        yield {name: stack.enter_context(buildah.mounted(name)) for name in ("serve", "full")}


@pytest.fixture(scope="module")
def volume(images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume whose store the image `full` has filled with the demo's variants."""
    folder = empty(tmp_path_factory.mktemp("volume"))
    reachable(folder)
    command = ["inference-unlimited", "build", demo(images["full"])]
    status, said = images["full"].say(command, folder)
    assert status == 0, said
    return folder


def empty(folder: Path) -> Path:
    """A volume as an engine makes it: the user's own."""
    os.chown(folder, VOLUME_OWNER, VOLUME_OWNER)
    return folder


def reachable(folder: Path) -> None:
    """Let another user pass through the folders above."""
    for parent in folder.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)


def demo(image: Image) -> str:
    (found,) = image.root.glob("venv/lib/python3*/site-packages/demo/config.yaml")
    return f"/{found.relative_to(image.root)}"


def site(image: Image) -> Path:
    (found,) = image.root.glob("venv/lib/python3*/site-packages")
    return found


def wait_serving(image: Image, volume: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the image's own health check is content, as an engine would."""
    end_s = time.monotonic() + 240
    while image.say(image.health, volume, environment=OPEN)[0] != 0:
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.5)


def test_images_say_what_they_are(images: dict[str, Image]) -> None:
    """A user that is a number, no root; labels; a health check of ours; ports and volume."""
    for image in images.values():
        assert image.config["User"] == "10001:10001"
        assert image.command == ["inference-unlimited", "serve"]
        assert image.health == ["inference-unlimited", "health"]
        assert set(image.config["ExposedPorts"]) == {"50051/tcp", "8000/tcp", "9464/tcp"}
        assert set(image.config["Volumes"]) == {PLACE}
        assert image.config["StopSignal"] == "SIGTERM"
        labels = image.config["Labels"]
        assert labels["org.opencontainers.image.title"] == "inference-unlimited"
        assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_only_what_is_needed_is_inside(images: dict[str, Image]) -> None:
    """Serving without the heavy libraries; neither with the wheels or the sources it came from."""
    assert not [name for name in HEAVY if (site(images["serve"]) / name).exists()]
    assert (site(images["serve"]) / "optimizers").is_dir()
    assert (site(images["full"]) / "torch").is_dir()
    for image in images.values():
        assert not (image.root / "src").exists()
        assert not (image.root / "wheels").exists()
    assert images["serve"].size_bytes < images["full"].size_bytes / 3


def test_versions_are_those_of_the_constraints(images: dict[str, Image]) -> None:
    """Today's image and next year's hold the same."""
    lines = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    wanted = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    ours = {"inference-unlimited", "pip", "setuptools"}
    for image in images.values():
        found = {
            name.lower().replace("_", "-"): version.partition("+")[0]
            for name, version in (
                path.name.removesuffix(".dist-info").rsplit("-", 1)
                for path in site(image).glob("*.dist-info")
            )
        }
        assert len(found) > 20
        assert {name: version for name, version in found.items() if name not in ours} == {
            name: wanted.get(name) for name in found if name not in ours
        }


def test_nothing_but_the_volume_can_be_written(images: dict[str, Image], volume: Path) -> None:
    """Not even by whoever gets around the user's lack of rights."""
    for image in images.values():
        for place in ("/venv/x", "/x", "/etc/x"):
            status, said = image.say(["touch", place], volume)
            assert status != 0
            assert "Read-only file system" in said
        assert image.say(["touch", f"{PLACE}/x"], volume)[0] == 0
        assert image.say(["touch", f"{PLACE}/y"], volume, read_only=True)[0] != 0


def test_others_are_not_served_without_a_token(images: dict[str, Image], volume: Path) -> None:
    """As the image is, it listens on all addresses, and so it wants to know who may ask."""
    image = images["serve"]
    status, said = image.say(image.command, volume)
    assert status == 1
    assert "server.tokens" in said
    assert "allow_anonymous" in said


@pytest.mark.parametrize("name", ["full", "serve"])
def test_a_filled_store_is_served_read_only(
    images: dict[str, Image], volume: Path, name: str, tmp_path: Path
) -> None:
    """By either image: health by grpc.health.v1, a request, and a drain on SIGTERM."""
    image = images[name]
    status, said = image.say(image.health, volume)
    assert status == 3, said  # nobody is there
    log = tmp_path / "log"
    with image.run(image.command, volume, OPEN, read_only=True, output=log) as process:
        wait_serving(image, volume, process)
        owner = Path(f"/proc/{process.pid}").stat().st_uid
        assert owner == VOLUME_OWNER
        with connect(TARGET) as client:
            assert client.serves("int4")
            request = pb.GenerateRequest(
                text="def fibonacci(n):",
                variant="int4",
                sampling=pb.SamplingParameters(max_tokens=400, ignore_eos=True, temperature=0),
            )
            stream = client.generate(request)
            next(stream)
            process.send_signal(signal.SIGTERM)
            *_, last = stream
        assert last.finish.usage.completion_tokens == 400
        assert process.wait(60) == 0, log.read_text()
    with pytest.raises(UnreachableError), connect(TARGET):
        pass


def test_the_image_without_an_optimizer_says_how_to_build(
    images: dict[str, Image], volume: Path
) -> None:
    """Its plan finds what is wrong with a chain, and what is not in the store it cannot make."""
    image = images["serve"]

    def serve(chain: list[object]) -> tuple[int, str]:
        config = {"model": "demo", "variants": {"other": chain}}
        (volume / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = ["inference-unlimited", "serve", f"{PLACE}/config.yaml"]
        return image.say(command, volume, environment=OPEN, read_only=True)

    status, said = serve([{"quantize": {"method": "weight_only", "bits": 5}}])
    assert status == 2
    assert "variants.other.chain[0].quantize.bits" in said
    status, said = serve([{"quantize": {"method": "weight_only", "bits": 8}}])
    assert status == 1
    assert "'other' is not in the store" in said
    assert "inference-unlimited build CONFIG" in said


def test_an_empty_volume_is_filled_and_served(images: dict[str, Image], tmp_path: Path) -> None:
    """`docker run` and nothing else: the default image builds its variants itself."""
    reachable(tmp_path)
    folder = empty(tmp_path)
    image = images["full"]
    with image.run(image.command, folder, OPEN, output=folder / "log") as process:
        wait_serving(image, folder, process)
        with connect(TARGET) as client:
            (*_, last) = client.generate(
                pb.GenerateRequest(text="def", sampling=pb.SamplingParameters(max_tokens=4))
            )
        assert last.finish.usage.completion_tokens == 4
