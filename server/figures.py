"""Whether stored figures can be judged on: they may be missing, of another text or processor.

Owns what makes figures worthless for a budget. Knows nothing of states of variants, or of what
follows from a judgement.
"""

from __future__ import annotations

import asyncio

import structlog

from artifacts import texts
from artifacts.digest import sha256_file
from artifacts.errors import TextError
from artifacts.manifest import Quality
from artifacts.protocol import BuildRequest
from server.budget import Budget

_log = structlog.get_logger(__name__)


async def doubt(
    budget: Budget, quality: Quality | None, request: BuildRequest, isa: str
) -> str | None:
    """Why an artifact must be measured (again) before it is judged; None when it need not be.

    Args:
        budget: What it is to be judged by.
        quality: Its figures.
        request: What it would be built by.
        isa: This machine's class of processor, on which kernels may round differently.
    """
    if not budget.needs_quality:
        return None
    if quality is None:
        return "it was published unmeasured"
    if missing := budget.missing(quality):
        return f"{', '.join(missing)} was not measured"
    if quality.isa != isa:
        return f"its figures are of a {quality.isa} processor, and this is a {isa}"
    text = await text_digest(request)
    if text is not None and text != quality.text_sha256:
        return "its figures are of another text than evaluation.text"
    return None


async def text_digest(request: BuildRequest) -> str | None:
    """SHA-256 (hex) of the text that is configured; None without one, or when it is unreadable."""
    if request.evaluation is None:
        return None
    try:
        return await asyncio.to_thread(_digest, request.evaluation.text)
    except (TextError, OSError) as error:  # the plan has refused what nobody could build with
        _log.warning("evaluation text cannot be read", variant=request.variant, error=str(error))
        return None


def _digest(text: str) -> str:
    return sha256_file(texts.check(text))
