"""Turns a stored artifact into something the engine can serve.

Owns opening the session and the tokenizer, warming up, and how many tokens the key-value cache may
reserve. Runs on a worker thread, and has others beside it. Knows nothing of variants' states, of
the engine or of asyncio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import structlog

from artifacts import machine
from artifacts.errors import SessionError
from artifacts.runtime import Threads
from artifacts.session import DecoderSession, Row
from artifacts.session_factory import open_session
from artifacts.side_by_side import side_by_side
from artifacts.store import StoredArtifact
from artifacts.tokenizer import Tokenizer
from server.catalog import VariantLimits
from server.chat_template import ChatTemplate, TemplateRefusalError, load_template
from server.drafts import OTHER_TOKENS, OTHER_TOKENS_REMEDY, DraftMethod, Drafts, same_tokens
from server.engine.draft_model import DraftModel
from server.engine.messages import Drafting
from server.engine.prompt_lookup import PromptLookup

_log = structlog.get_logger(__name__)

# Of the memory that is left after weights: the rest is for activations, prompts and the system.
_CACHE_SHARE = 0.5
_WARM_UP_TOKENS = 8
_FEWEST_TOKENS = 16  # a cache of less serves nobody


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How every variant is loaded.

    Attributes:
        slots: Sequences per variant.
        max_length: Longest sequence, None for the model's own limit.
        kv_bytes: Memory for one variant's cache, None for a share of ``memory_bytes``.
        memory_bytes: What one variant may take in all, weights included.
        max_waiting: Requests that may wait for a slot.
        threads: Who computes.
        step_tokens: The most tokens of one step.
        available_bytes: What the machine has left once the weights are loaded; others may have
            come before. None: not looked at.
    """

    slots: int
    max_length: int | None
    kv_bytes: int | None
    memory_bytes: int
    max_waiting: int
    threads: Threads
    step_tokens: int = 256
    available_bytes: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A variant that can be attached to the engine."""

    session: DecoderSession
    rebuild: Callable[[], DecoderSession]
    tokenizer: Tokenizer
    limits: VariantLimits
    load_s: float
    warm_up_s: float
    template: ChatTemplate | None = None
    drafting: Drafting | None = None


def load(
    stored: StoredArtifact,
    settings: LoadSettings,
    clock: Callable[[], float] = time.monotonic,
    *,
    drafts: Drafts | None = None,
    drafter: StoredArtifact | None = None,
) -> Loaded:
    """Open and warm up.

    Args:
        stored: What is to serve.
        settings: How everything is loaded.
        clock: Monotonic seconds.
        drafts: Where its drafted tokens come from; None for nowhere.
        drafter: The artifact that drafts, where one does.

    Raises:
        CorruptArtifactError: A file is missing or no tokenizer.
        SessionError: ONNX Runtime refuses the model, or the settings or the drafter do not fit it.
    """
    begun_s = clock()
    graph = stored.manifest.graph
    if settings.max_length is not None and settings.max_length > graph.max_length:
        raise SessionError(
            f"engine.max_length: {settings.max_length} is more than the model's context of "
            f"{graph.max_length} tokens.",
            remedy="Lower it, or leave it away.",
        )
    max_length = settings.max_length or graph.max_length
    model = stored.path("model.onnx")

    def open_again() -> DecoderSession:
        return open_session(
            model, graph, slots=settings.slots, max_length=max_length, threads=settings.threads
        )

    def open_tokenizer() -> Tokenizer:
        return Tokenizer.load(stored.path("tokenizer.json"))

    def open_sessions() -> tuple[DecoderSession, tuple[Drafting, DecoderSession] | None]:
        if drafts is None or drafter is None:
            return open_again(), None
        _check_drafter(stored, drafter)
        length = min(max_length, drafter.manifest.graph.max_length)
        return side_by_side(
            open_again, partial(_draft_model, drafter, drafts, settings, length, clock)
        )

    # Graphs leave the interpreter's lock while they load, the tokenizer keeps it.
    (session, drafted), tokenizer = side_by_side(open_sessions, open_tokenizer)
    sessions, sizes = [session], [stored.manifest.size_bytes]
    drafting: Drafting | None = None
    if drafted is not None and drafter is not None:
        drafting, draft_session = drafted
        sessions.append(draft_session)
        sizes.append(drafter.manifest.size_bytes)
    elif drafts is not None and drafts.method is DraftMethod.PROMPT_LOOKUP:
        drafting = Drafting(PromptLookup(), PromptLookup, drafts.max_draft_tokens, drafts.adaptive)
    machine.give_memory_back()  # what packing needed: a tenth of the weights and more
    loaded_s = clock()
    for each in sessions:
        _warm_up(each)
    limits = VariantLimits(
        max_length=max_length,
        slots=settings.slots,
        kv_budget_tokens=_kv_budget_tokens(sessions, sum(sizes), settings),
        max_waiting=settings.max_waiting,
    )
    return Loaded(
        session=session,
        rebuild=open_again,
        tokenizer=tokenizer,
        limits=limits,
        load_s=loaded_s - begun_s,
        warm_up_s=clock() - loaded_s,
        template=_template(stored),
        drafting=drafting,
    )


def _draft_model(
    drafter: StoredArtifact,
    drafts: Drafts,
    settings: LoadSettings,
    max_length: int,
    clock: Callable[[], float],
) -> tuple[Drafting, DecoderSession]:
    """A session of its own beside the variant's, slot by slot."""

    def open_draft() -> DecoderSession:
        return open_session(
            drafter.path("model.onnx"),
            drafter.manifest.graph,
            slots=settings.slots,
            max_length=max_length,
            threads=settings.threads,
        )

    def rebuild() -> DraftModel:
        return DraftModel(open_draft(), settings.step_tokens, clock)

    session = open_draft()
    model = DraftModel(session, settings.step_tokens, clock)
    return Drafting(model, rebuild, drafts.max_draft_tokens, drafts.adaptive), session


def _check_drafter(stored: StoredArtifact, drafter: StoredArtifact) -> None:
    """Refuse one whose tokens are others.

    Raises:
        SessionError: They are.
    """
    if not same_tokens(stored.manifest, drafter.manifest):
        raise SessionError(f"speculation.variant: {OTHER_TOKENS}.", remedy=OTHER_TOKENS_REMEDY)


def _template(stored: StoredArtifact) -> ChatTemplate | None:
    """The model's chat template; one that cannot be read costs the conversations alone."""
    names = {entry.name for entry in stored.manifest.files}

    def path(name: str) -> Path | None:
        return stored.path(name) if name in names else None

    try:
        return load_template(path("chat_template.jinja"), path("tokenizer_config.json"))
    except TemplateRefusalError as refusal:
        where = "" if refusal.line is None else f" (line {refusal.line})"
        _log.warning("the chat template is not valid", problem=f"{refusal}{where}")
        return None


def _warm_up(session: DecoderSession) -> None:
    """Run a prompt and one token, so that the first request pays for no allocation."""
    count = min(_WARM_UP_TOKENS, session.max_length - 1)
    prompt = np.arange(count, dtype=np.int64) % session.vocab_size
    session.step([Row(slot=0, start=0, tokens=prompt, logits=1)])
    session.step([Row(slot=0, start=count, tokens=prompt[:1], logits=1)])
    session.release(0)


def _kv_budget_tokens(
    sessions: Sequence[DecoderSession], size_bytes: int, settings: LoadSettings
) -> int:
    """Reserved tokens that the caches have memory for; a drafter's grows beside the variant's."""
    session = sessions[0]
    token_bytes = sum(each.kv_bytes_per_token for each in sessions)
    if settings.kv_bytes is not None:
        kv_bytes = settings.kv_bytes
    else:
        left = max(settings.memory_bytes - size_bytes, 0)
        if settings.available_bytes is not None:
            left = min(left, settings.available_bytes())
        kv_bytes = int(left * _CACHE_SHARE)
    all_slots = session.slots * session.max_length
    tokens = min(kv_bytes // token_bytes, all_slots)
    if tokens < min(_FEWEST_TOKENS, session.max_length):
        raise SessionError(
            f"engine.kv_bytes: {kv_bytes} bytes hold {tokens} tokens of {token_bytes} bytes each.",
            remedy="Set engine.kv_bytes, or serve fewer variants or on a machine with more memory.",
        )
    return tokens
