"""Model sources: a hub id, a local folder, or ``demo``; pinned, checked, and brought to disk.

Owns what a source is called, its revision, and the refusal of what cannot be trusted. Knows
nothing of torch; the hub's client is imported only when an id needs it (``optimizers.hub``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from artifacts.layout import Layout
from artifacts.manifest import ModelSource
from optimizers.errors import SourceError
from optimizers.model_folder import Checked, check_folder, content_revision

DEMO = "demo"
_HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Pinned:
    """A source whose content can no longer change under its name.

    Attributes:
        id: The hub id, ``demo``, or the folder's name.
        revision: The hub commit, or ``sha256:`` and the digest of the folder's files.
        folder: Where it lies; None while it is only known to the hub.
        warnings: What the user should know about how it was pinned.
    """

    id: str
    revision: str
    folder: Path | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A checked model folder on this disk."""

    model: ModelSource
    folder: Path


def pin(model: str, revision: str | None, *, layout: Layout | None, offline: bool) -> Pinned:
    """Find a source and fix its revision, reading as little as possible.

    What was learned is recorded in the store of ``layout``, where there is one that can be written.

    Raises:
        SourceError: There is no such model, or it is refused.
    """
    folder = local_folder(model)
    if folder is None:
        return _pin_hub(model, revision, layout, offline=offline)
    if revision is not None and not revision.startswith("sha256:"):
        raise SourceError(
            f"A revision is given for {model!r}, which is a folder and has none.",
            path="revision",
            remedy="Remove revision; a folder is pinned by its content.",
        )
    with _reading(folder):
        check_folder(folder)
        found = content_revision(folder, layout)
    if revision is not None and revision != found:
        raise SourceError(
            f"The files of {model!r} have changed: {found} is not {revision}.",
            path="revision",
            remedy="Plan again, or remove revision.",
        )
    return Pinned(id=DEMO if model == DEMO else folder.name, revision=found, folder=folder)


def fetch(
    model: str,
    revision: str | None,
    *,
    layout: Layout,
    offline: bool,
    report: Callable[[float, str], None],
) -> Source:
    """Bring a source to this disk and check all of it.

    Raises:
        SourceError: It cannot be had, or it is refused.
    """
    pinned = pin(model, revision, layout=layout, offline=offline)
    folder = pinned.folder
    if folder is None:
        from optimizers import hub

        folder = hub.download(pinned.id, pinned.revision, offline=offline, report=report)
    with _reading(folder):
        checked: Checked = check_folder(folder)
    return Source(
        model=ModelSource(
            id=pinned.id,
            revision=pinned.revision,
            architecture=checked.architecture,
            license=checked.license,
        ),
        folder=folder,
    )


def local_folder(model: str) -> Path | None:
    """The folder that a model's name means, or None when it is a hub id.

    Raises:
        SourceError: It is written like a path and no folder, or like nothing at all.
    """
    if model == DEMO:
        import demo

        return demo.path()
    try:
        path = Path(model).expanduser()
        if model.strip() and path.is_dir():
            return path.resolve()
    # The home of nobody, a name that is too long, or a place that this user may not look into.
    except (OSError, RuntimeError) as error:
        raise SourceError(
            f"{model!r} cannot be looked up: {getattr(error, 'strerror', None) or error}.",
            path="model",
            remedy="Write owner/name, a path that this user can read, or demo.",
        ) from error
    if model.startswith(("/", ".", "~")) or model.count("/") > 1 or os.sep in model[-1:]:
        raise SourceError(f"There is no folder {model!r}.", path="model", remedy="Check the path.")
    if _HUB_ID.fullmatch(model) is None:
        raise SourceError(
            f"{model!r} is neither a folder nor a hub id.",
            path="model",
            remedy="Write owner/name, a path, or demo.",
        )
    return None


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Translate what the operating system says about a model folder."""
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"{error.filename or folder} cannot be read: {error.strerror or error}.",
            path="model",
            remedy="Give this user read access to the model's folder and files.",
        ) from error


def _pin_hub(model: str, revision: str | None, layout: Layout | None, *, offline: bool) -> Pinned:
    from optimizers import hub

    if revision is not None and hub.is_commit(revision):
        return Pinned(id=model, revision=revision, folder=None)
    commit, warnings = hub.resolve(model, revision or "main", layout=layout, offline=offline)
    return Pinned(id=model, revision=commit, folder=None, warnings=warnings)


def demo_text(model: str, name: str) -> str | None:
    """A file of texts that the demo model brings; None for other models, which bring none."""
    if model != DEMO:
        return None
    import demo

    path = demo.path().parent / name
    return str(path) if path.is_file() else None
