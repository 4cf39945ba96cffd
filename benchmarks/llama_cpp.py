"""The peer llama.cpp: its server, built for this machine from the source in llama-cpp-python.

Owns the build, the files that it makes of a model, and how the server is started and asked over
HTTP. Knows nothing of turns and of reports.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import Child, ChildError
from benchmarks.contenders import ROOT, Place, Served
from benchmarks.environments import python_with

_PACKAGE = "llama-cpp-python==0.3.36"
_BUILD_S = 3600
_OFF = ("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_OPENSSL", "LLAMA_USE_PREBUILT_UI")
_PROGRAMS = ("llama-server", "llama-quantize")
_SLOTS = 16


@dataclass(frozen=True, slots=True)
class Tools:
    """What was built.

    Attributes:
        python: Interpreter that converts models.
        source: Folder of llama.cpp's source.
        programs: Folder of ``llama-server`` and ``llama-quantize``.
    """

    python: Path
    source: Path
    programs: Path


def build(folder: Path) -> Tools:
    """Build the server, unless it was built in that folder before.

    Raises:
        ChildError: A command failed.
    """
    python = python_with(
        folder / "venv", ROOT / "benchmarks" / "requirements" / "llama-cpp.txt", "import cmake"
    )
    source = folder / "source" / "vendor" / "llama.cpp"
    programs = folder / "build" / "bin"
    if not all((programs / name).exists() for name in _PROGRAMS):
        _fetch(python, folder)
        commands = python.parent
        cmake = [str(commands / "cmake"), "-S", str(source), "-B", str(folder / "build")]
        ninja = f"-DCMAKE_MAKE_PROGRAM={commands / 'ninja'}"
        release = ["-G", "Ninja", ninja, "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"]
        _run([*cmake, *release, *(f"-D{option}=OFF" for option in _OFF)])
        target = ["--build", str(folder / "build"), "--target", *_PROGRAMS]
        _run([str(commands / "cmake"), *target])
    return Tools(python, source, programs)


def _fetch(python: Path, folder: Path) -> None:
    """Unpack the source package as ``source``."""
    pip = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    _run([*pip, "--dest", str(folder), _PACKAGE])
    (package,) = folder.glob("llama_cpp_python-*.tar.gz")
    shutil.rmtree(folder / "source", ignore_errors=True)
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    (folder / package.name.removesuffix(".tar.gz")).rename(folder / "source")


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, check=False, timeout=_BUILD_S, cwd=ROOT, stdout=subprocess.DEVNULL
    )
    if done.returncode:
        raise ChildError(f"{' '.join(command)} failed; leave it out with --without.")


class LlamaServer(Served):
    """llama.cpp's server with one quantization of the model.

    Args:
        name: In results and tables.
        place: Where it lives.
        tools: What was built.
        rung: The quantization by llama.cpp's name, as ``Q4_0``.
        client: The HTTP client.
        context: Tokens of one slot, at most.
    """

    def __init__(
        self, name: str, place: Place, *, tools: Tools, rung: str, client: Child, context: int
    ) -> None:
        super().__init__(name, place, client=client)
        self._tools = tools
        self._rung = rung
        self._context = context
        self._file = place.folder / "gguf" / f"{rung}.gguf"
        self._port = 0
        self.versions = {"llama.cpp of": _PACKAGE}

    def discard(self) -> None:
        """Delete the quantized file; it is made anew by the next start."""
        self._file.unlink(missing_ok=True)

    def scores(self, windows: list[list[int]], into: Path) -> None:
        """Write the logits of texts."""
        limit_s = self._settings.answer_s
        self._client.ask("scores", timeout_s=limit_s, windows=windows, into=str(into))

    def _spawn(self) -> Child:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        slots = str(_SLOTS)
        serve = [
            *(str(self._tools.programs / "llama-server"), "--model", str(self._file)),
            *("--host", "127.0.0.1", "--port", str(self._port), "--no-webui"),
            *("--parallel", slots, "--ctx-size", str(_SLOTS * self._context)),
            *("--threads", str(self._settings.threads), "--cache-ram", "0", "--log-disable"),
        ]
        make = [
            *(str(self._tools.python), "-m", "benchmarks.workers.llama_server"),
            *(str(self._tools.source), str(self._tools.programs), str(self._place.model)),
            *(str(self._file), self._rung),
        ]
        return self._place.child(self.name, [*make, *serve])

    def _load(self) -> None:
        limit_s = self._settings.start_s
        self._client.ask("wait_serving", timeout_s=limit_s, port=self._port, limit_s=limit_s)

    def _connect(self) -> None:
        self._client.ask("connect", timeout_s=self._settings.answer_s, port=self._port)
