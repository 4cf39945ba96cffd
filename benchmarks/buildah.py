"""Images without an engine: built by Debian's buildah, and run in their own root file system.

Owns buildah's store, the base image that takes the place of a registry's, and what of a container
a chroot can give: the image's user, environment and command, a root that is read-only apart from
the volume. Limits of memory and processor, seccomp and networks of their own are an engine's. Needs
root and Linux. Knows nothing of what is in an image.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PACKAGES = "python3,python3-venv,ca-certificates"
# In the child's own mount namespace: nothing of it outlives the child.
_ENTER = """
set -e
mount --bind "$ROOT" "$ROOT"
mount -o remount,bind,ro "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs tmpfs "$ROOT/tmp"
mount --bind "$VOLUME" "$ROOT$PLACE"
if [ -n "$READ_ONLY" ]; then mount -o remount,bind,ro "$ROOT$PLACE"; fi
exec chroot --userspec="$OWNER" "$ROOT" /usr/bin/env -i --chdir="$PLACE" "$@"
"""
_INSIDE = ("unshare", "--mount", "sh", "-c", _ENTER, "sh")


@dataclass(frozen=True, slots=True)
class Image:
    """One image, by its id, and what its config says."""

    id: str
    config: Mapping[str, Any]
    root: Path
    size_bytes: int

    @property
    def command(self) -> list[str]:
        """What a container runs unless it is told otherwise."""
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    @property
    def health(self) -> list[str]:
        """What the health check runs."""
        kind, *command = map(str, self.config["Healthcheck"]["Test"])
        if kind != "CMD":
            raise ValueError(f"The health check is a {kind}, not a CMD.")
        return command

    @contextlib.contextmanager
    def run(
        self,
        command: Sequence[str],
        volume: Path,
        environment: Mapping[str, str] | None = None,
        *,
        read_only: bool = False,
        output: Path | None = None,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command as an engine would; leave the block, and it is gone.

        Args:
            command: With its arguments.
            volume: A folder in place of the image's volume.
            environment: Beside that of the image.
            read_only: Whether the volume cannot be written either.
            output: File for what it says, standard error included; None gives a pipe.
        """
        (place,) = self.config["Volumes"]
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        with contextlib.ExitStack() as stack:
            sink: Any = subprocess.PIPE
            if output is not None:
                sink = stack.enter_context(output.open("wb"))
            process = stack.enter_context(
                subprocess.Popen(
                    [*_INSIDE, *self.config["Env"], *variables, *command],
                    env={
                        "PATH": os.environ["PATH"],
                        "ROOT": str(self.root),
                        "VOLUME": str(volume),
                        "PLACE": place,
                        "OWNER": self.config["User"],
                        "READ_ONLY": "yes" if read_only else "",
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                )
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def say(self, command: Sequence[str], volume: Path, **options: Any) -> tuple[int, str]:
        """Run a command to its end; its exit status and what it said."""
        with self.run(command, volume, **options) as process:
            said, _ = process.communicate(timeout=300)
        return process.returncode, said.decode()


class Buildah:
    """A store of images in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        places = ("--root", str(self._folder / "root"), "--runroot", str(self._folder / "run"))
        self._command = ("buildah", *places, "--storage-driver", "vfs")

    def base(self, name: str = "localhost/python-base") -> str:
        """The name of a Debian with Python, made by debootstrap unless it is there."""
        if not self._has(name):
            tree = self._folder / "base"
            shutil.rmtree(tree, ignore_errors=True)
            tree.parent.mkdir(parents=True, exist_ok=True)
            _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", *_debian(tree))
            for rubbish in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc"):
                shutil.rmtree(tree / rubbish, ignore_errors=True)
            container = self._say("from", "scratch")
            self._say("add", "--quiet", container, str(tree), "/")
            path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            self._say("config", "--cmd", "python3", "--env", f"PATH={path}", container)
            self._say("commit", "--quiet", "--format", "docker", container, name)
            self._say("rm", container)
            shutil.rmtree(tree)
        return name

    def build(self, context: Path, target: str, arguments: Mapping[str, str]) -> None:
        """Build a target of a context's Dockerfile into ``localhost/TARGET``."""
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        if CERTIFICATES.exists():  # of this host: it may trust whoever stands before the index
            options += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
        self._say(
            *("build", "--quiet", "--isolation", "chroot", "--format", "docker"),
            *(*options, "--target", target, "--tag", f"localhost/{target}", str(context)),
        )

    @contextlib.contextmanager
    def mounted(self, target: str) -> Iterator[Image]:
        """An image with its root file system."""
        name = f"localhost/{target}"
        told = json.loads(self._say("inspect", "--type", "image", name))
        container = self._say("from", name)
        try:
            root = Path(self._say("mount", container))
            yield Image(
                id=told["FromImageID"],
                config=told["Docker"]["config"],
                root=root,
                size_bytes=_disk_bytes(root),
            )
        finally:
            self._say("rm", container)

    def _has(self, name: str) -> bool:
        done = subprocess.run(
            [*self._command, "inspect", "--type", "image", name], capture_output=True, check=False
        )
        return done.returncode == 0

    def _say(self, *arguments: str) -> str:
        return _run(*self._command, *arguments)


def _debian(tree: Path) -> tuple[str, str, str]:
    """Release, folder and mirror, as this machine has them."""
    release = _run("sh", "-c", '. /etc/os-release && echo "$VERSION_CODENAME"')
    mirrors = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {release}")
    return release, str(tree), mirrors.splitlines()[0]


def _disk_bytes(root: Path) -> int:
    return int(_run("du", "--bytes", "--summarize", "--one-file-system", str(root)).split()[0])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {(done.stderr or done.stdout)[-4000:]}")
    return done.stdout.strip()
