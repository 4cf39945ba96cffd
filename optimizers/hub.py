"""Models of the Hugging Face hub, through its own client, imported here and nowhere else.

Owns the pinning of a branch to a commit, which files are fetched, and what the hub's errors mean.
Knows nothing of what is done with a model.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.digest import sha256_json, write_atomically
from artifacts.layout import Layout
from optimizers.errors import SourceError
from optimizers.model_folder import ALLOWED, CHECKED, check_configs, check_weights

_TIMEOUT_S = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit, which needs no looking up."""
    return _COMMIT.fullmatch(revision) is not None


def resolve(
    model: str, revision: str, *, layout: Layout | None, offline: bool
) -> tuple[str, tuple[str, ...]]:
    """Find the commit of a branch or tag, and refuse a model without safetensors.

    Returns:
        The commit, and warnings. Offline, or when the hub cannot be reached, it is the commit that
        was last seen, by this store or by the client's cache.

    Raises:
        SourceError: There is no such model or revision, or nobody can be asked.
    """
    from huggingface_hub import constants

    if revision.startswith("/") or ".." in revision:  # it becomes part of a path in the cache
        raise SourceError(
            f"{revision!r} is no revision.",
            path="revision",
            remedy="Name a branch, a tag or a full commit.",
        )
    if offline or constants.HF_HUB_OFFLINE:
        known = known_commit(model, revision, layout)
        if known is None:
            raise _not_cached(model, revision)
        return known, ()
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(model, revision=revision, timeout=_TIMEOUT_S)
    except Exception as error:  # the client's errors and its transport's have no common base
        refusal = _refusal(model, revision, error)
        known = known_commit(model, revision, layout)
        if refusal is not None or known is None:
            raise refusal or _unreachable(model, error) from error
        return known, (f"The hub cannot be reached; {model} is pinned to the known {known}.",)
    check_weights([one.rfilename for one in info.siblings or ()], model)
    commit = str(info.sha)
    if layout is not None:
        # The record only helps a later start without network: a full disk must not stop this one.
        with contextlib.suppress(OSError):
            record = _record(model, revision, layout)
            write_atomically(record, commit.encode(), scratch=layout.tmp)
    return commit, ()


def download(
    model: str, commit: str, *, offline: bool, report: Callable[[float, str], None]
) -> Path:
    """Bring the allowed files of a commit to the local cache.

    Configs come first, so that a model with code of its own is refused before its weights come.

    Raises:
        SourceError: It cannot be had, or it is refused.
    """
    from huggingface_hub import constants

    offline = offline or constants.HF_HUB_OFFLINE
    report(0.0, f"fetching the configuration of {model}")
    folder = _snapshot(model, commit, list(CHECKED), offline=offline)
    check_configs(folder)
    report(0.1, f"fetching {model}")
    return _snapshot(model, commit, list(ALLOWED), offline=offline)


def known_commit(model: str, revision: str, layout: Layout | None) -> str | None:
    """The commit that a branch or tag was last seen at; the newer of the two records counts.

    The client's cache keeps its own record only of what was fetched by that branch's name.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / ("models--" + model.replace("/", "--"))
    records = [folder / "refs" / revision]
    if layout is not None:
        records.append(_record(model, revision, layout))
    found: list[tuple[int, str]] = []
    for record in records:
        # A record that is missing, or cannot be read, is one that does not count.
        with contextlib.suppress(OSError, ValueError):
            commit = record.read_text(encoding="ascii").strip()
            if is_commit(commit):
                found.append((record.stat().st_mtime_ns, commit))
    return max(found)[1] if found else None


def _record(model: str, revision: str, layout: Layout) -> Path:
    return layout.sources / f"hub-{sha256_json([model, revision])}.txt"


def _snapshot(model: str, commit: str, patterns: list[str], *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Patterns would match in folders too, where repositories keep other formats.
        folder = snapshot_download(
            model,
            revision=commit,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],
            local_files_only=offline,
        )
    except Exception as error:  # the client's errors and its transport's have no common base
        if offline:
            raise _not_cached(model, commit) from error
        raise (_refusal(model, commit, error) or _unreachable(model, error)) from error
    return Path(folder)


def _refusal(model: str, revision: str, error: Exception) -> SourceError | None:
    """What the hub said no to; None when it was not reached at all."""
    from huggingface_hub import errors

    kinds: list[tuple[Any, str, str, str]] = [
        (
            errors.GatedRepoError,
            f"{model} is gated and this machine may not read it.",
            "model",
            "Accept its terms on the hub and log in (hf auth login, or HF_TOKEN).",
        ),
        (
            errors.RevisionNotFoundError,
            f"{model} has no revision {revision!r}.",
            "revision",
            "Name a branch, a tag or a full commit.",
        ),
        (
            errors.RepositoryNotFoundError,
            f"The hub has no model {model!r}, or it is private.",
            "model",
            "Check the name; for a private model, log in (hf auth login, or HF_TOKEN).",
        ),
        (
            errors.HFValidationError,
            f"{model!r} is no hub id.",
            "model",
            "Write owner/name, a path, or demo.",
        ),
    ]
    for kind, message, path, remedy in kinds:
        if isinstance(error, kind):
            return SourceError(message, path=path, remedy=remedy)
    return None


def _unreachable(model: str, error: Exception) -> SourceError:
    return SourceError(
        f"{model} cannot be fetched: {type(error).__name__}: {str(error)[:200]}",
        path="model",
        remedy="Check the network (and HF_ENDPOINT), or name a local folder.",
    )


def _not_cached(model: str, revision: str) -> SourceError:
    return SourceError(
        f"{model} at {revision} is not in the local cache, and the hub is not asked (offline).",
        path="model",
        remedy="Fetch it once with the network on, or name a local folder.",
    )
