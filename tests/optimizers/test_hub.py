"""The real hub client against a hub on this machine that records what it is asked for."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

if TYPE_CHECKING:
    from tests.optimizers.conftest import Child

MODEL = "someone/tiny"
COMMIT = "1" * 40
OLDER = "2" * 40


@dataclass
class Hub:
    """One repository with two commits, and the requests that came."""

    files: dict[str, bytes]
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> set[str]:
        """Names of files whose content was asked for."""
        return {
            path.split("/", 5)[5]
            for method, path in (request.split(" ", 1) for request in self.requests)
            if method == "GET" and "/resolve/" in path
        }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if path.startswith(f"/api/models/{MODEL}/tree/"):
            listing = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
                }
                for name, content in self.hub.files.items()
            ]
            self._send(200, json.dumps(listing).encode(), {}, with_body=with_body)
            return
        if path.startswith(f"/api/models/{MODEL}"):
            revision = path.partition("/revision/")[2] or "main"
            if revision not in {"main", COMMIT, OLDER}:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=True)
                return
            content = {
                "id": MODEL,
                "sha": COMMIT if revision == "main" else revision,
                "siblings": [{"rfilename": name} for name in self.hub.files],
            }
            self._send(200, json.dumps(content).encode(), {}, with_body=with_body)
            return
        if path.startswith("/api/models/"):
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body=True)
            return
        _, _, _, _, revision, name = path.split("/", 5)
        if name not in self.hub.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body=True)
            return
        content = self.hub.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT if revision == "main" else revision,
        }
        self._send(200, content, headers, with_body=with_body)

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], *, with_body: bool
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tiny_llama_folder: Path) -> Iterator[Hub]:
    """Serve the tiny Llama, and beside it what must never be fetched."""
    files = {path.name: path.read_bytes() for path in tiny_llama_folder.iterdir()}
    files |= {
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"import os",
        "README.md": b"# card",
        "onnx/model.onnx": b"onnx",
        "original/model.safetensors": b"other",
        "consolidated.safetensors": b"twice",
    }
    served = Hub(files)
    handler = type("Handler", (_Handler,), {"hub": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def online(child: Child, hub: Hub, tmp_path: Path) -> Child:
    """Give an optimizer that knows no hub but this one, with an empty cache."""
    environment = {
        **child.environment,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return type(child)(child.store, environment=environment)


def _fetch(child: Child, revision: str | None, *, offline: bool = False) -> dict[str, Any]:
    """Fetch in a process of its own: the client reads its settings when it is imported."""
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from artifacts.layout import Layout\n"
        "from optimizers.errors import SourceError\n"
        "from optimizers.sources import fetch\n"
        "model, revision, root, offline = json.loads(sys.argv[1])\n"
        "layout = Layout(Path(root))\n"
        "layout.create()\n"
        "try:\n"
        "    source = fetch(model, revision, layout=layout, offline=offline,"
        " report=lambda *_: None)\n"
        "except SourceError as error:\n"
        "    print(json.dumps({'error': str(error), 'remedy': error.remedy}))\n"
        "else:\n"
        "    files = sorted(path.name for path in source.folder.iterdir())\n"
        "    print(json.dumps({'revision': source.model.revision, 'id': source.model.id,"
        " 'files': files}))\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            json.dumps([MODEL, revision, str(child.store), offline]),
        ],
        capture_output=True,
        env=dict(child.environment),
        cwd=child.root,
        check=True,
    )
    content: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return content


def test_a_branch_is_pinned_to_its_commit(online: Child) -> None:
    """The plan's revision is the commit, whatever the branch will be tomorrow."""
    plan = online.plan(MODEL, {"v": []})
    assert not plan.errors
    assert plan.revision == COMMIT
    assert online.plan(MODEL, {"v": []}, revision=OLDER).revision == OLDER


def test_only_the_files_that_are_read_are_fetched(
    online: Child, hub: Hub, tiny_llama_folder: Path
) -> None:
    """No pickles, no code, no second copies of the weights."""
    fetched = _fetch(online, COMMIT)
    wanted = {path.name for path in tiny_llama_folder.iterdir()}
    assert set(fetched["files"]) == wanted
    assert hub.fetched() == wanted
    assert fetched["revision"] == COMMIT
    assert fetched["id"] == MODEL


def test_the_pinned_commit_is_what_is_asked_for(online: Child, hub: Hub) -> None:
    """Files come from the commit and never from a branch."""
    _fetch(online, OLDER)
    revisions = {
        request.split("/resolve/")[1].split("/")[0]
        for request in hub.requests
        if "/resolve/" in request
    }
    assert revisions == {OLDER}


def test_code_is_refused_before_weights_are_fetched(online: Child, hub: Hub) -> None:
    """auto_map is found in the config, and nothing large has come by then."""
    config = json.loads(hub.files["config.json"])
    hub.files["config.json"] = json.dumps({**config, "auto_map": {"A": "b.C"}}).encode()
    assert "auto_map" in _fetch(online, COMMIT)["error"]
    assert "model.safetensors" not in hub.fetched()


def test_a_model_without_safetensors_is_refused_in_the_plan(online: Child, hub: Hub) -> None:
    """The listing is enough to tell; nothing is fetched."""
    for name in ("model.safetensors", "original/model.safetensors", "consolidated.safetensors"):
        del hub.files[name]
    (error,) = online.plan(MODEL, {"v": []}).errors
    assert error.path == "model"
    assert "pytorch_model.bin" in error.message
    assert "safetensors" in error.remedy
    assert not hub.fetched()


def test_a_cached_model_needs_no_network(online: Child, hub: Hub) -> None:
    """Offline, the branch means what it last meant, and every file comes from the cache."""
    _fetch(online, None)
    hub.requests.clear()
    assert _fetch(online, None, offline=True)["revision"] == COMMIT
    assert online.plan(MODEL, {"v": []}, offline=True).revision == COMMIT
    silent = type(online)(online.store, environment={**online.environment, "HF_HUB_OFFLINE": "1"})
    assert _fetch(silent, None)["revision"] == COMMIT
    assert hub.requests == []


def test_an_unreachable_hub_falls_back_to_the_cache_with_a_warning(online: Child) -> None:
    """A restart without network serves what it served before, and says so."""
    _fetch(online, None)
    away = type(online)(
        online.store, environment={**online.environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    plan = away.plan(MODEL, {"v": []})
    assert plan.revision == COMMIT
    assert "cannot be reached" in plan.variants["v"].warnings[0]


def test_what_is_not_cached_cannot_be_had_offline(online: Child, hub: Hub) -> None:
    """The error says that the network was not asked."""
    (error,) = online.plan(MODEL, {"v": []}, offline=True).errors
    assert "offline" in error.message
    assert "offline" in _fetch(online, COMMIT, offline=True)["error"]
    assert hub.requests == []


@pytest.mark.parametrize("offline", [False, True])
def test_a_revision_is_no_path(online: Child, hub: Hub, tmp_path: Path, *, offline: bool) -> None:
    """What lies elsewhere on this disk is no record of the cache, whatever it holds."""
    secret = tmp_path / "secret"
    secret.write_text(OLDER)
    (tmp_path / "hf" / "hub" / "models--someone--tiny" / "refs").mkdir(parents=True)
    for revision in (str(secret), "../../../../secret"):
        plan = online.plan(MODEL, {"v": []}, revision=revision, offline=offline)
        assert [error.path for error in plan.errors] == ["revision"]
        assert plan.revision is None
    assert hub.requests == []


@pytest.mark.parametrize(
    "content",
    [b"not a commit", b"\xff" * 40, OLDER.encode() + b"0"],
    ids=["words", "bytes", "longer"],
)
def test_a_record_that_names_no_commit_does_not_count(
    online: Child, tmp_path: Path, content: bytes
) -> None:
    """Only a full commit pins anything."""
    refs = tmp_path / "hf" / "hub" / "models--someone--tiny" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_bytes(content)
    (error,) = online.plan(MODEL, {"v": []}, offline=True).errors
    assert "offline" in error.message


def test_a_record_that_cannot_be_written_stops_no_plan(online: Child) -> None:
    """It only helps a later start without network."""
    online.plan(MODEL, {"v": []})
    for record in (online.store / "sources").iterdir():
        record.unlink()
    (online.store / "tmp").rmdir()  # fails like a full disk, for root too
    assert online.plan(MODEL, {"v": []}).revision == COMMIT
    assert list((online.store / "sources").iterdir()) == []


def test_generation_defaults_are_refused_before_weights_are_fetched(
    online: Child, hub: Hub
) -> None:
    """They are needed last, and checked first."""
    hub.files["generation_config.json"] = b'{"temperature": "hot"}'
    assert "temperature" in _fetch(online, COMMIT)["error"]
    assert "model.safetensors" not in hub.fetched()


@pytest.mark.parametrize(
    ("model", "revision", "path"),
    [("someone/else", None, "model"), (MODEL, "no-such-branch", "revision")],
)
def test_a_model_or_revision_that_does_not_exist_is_told(
    online: Child, model: str, revision: str | None, path: str
) -> None:
    """The field at fault is named."""
    (error,) = online.plan(model, {"v": []}, revision=revision).errors
    assert error.path == path
    assert error.remedy
