"""A model's own generation defaults: ``generation_config.json``, else what ``config.json`` has.

Owns which fields are read and what they may hold. Knows nothing of how they are used.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from artifacts.manifest import GenerationDefaults
from optimizers.errors import SourceError
from optimizers.json_file import read_object

OWN = "generation_config.json"
_CONFIG = "config.json"
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def generation_defaults(folder: Path) -> GenerationDefaults:
    """Read a model folder's defaults.

    Raises:
        SourceError: A file cannot be read, or a field holds something else than it should.
    """
    config = read_object(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    own = read_object(folder / OWN) if (folder / OWN).is_file() else {}
    has_own_end = own.get("eos_token_id") is not None
    eos = own["eos_token_id"] if has_own_end else config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(_is_id(one) for one in ids):
        name = OWN if has_own_end else _CONFIG
        raise _wrong(folder / name, "eos_token_id", "is neither a token id nor a list of them")
    bos = own.get("bos_token_id", config.get("bos_token_id"))
    sampling = {name: own[name] for name in _SAMPLING if own.get(name) is not None}
    for name, value in sampling.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(folder / OWN, name, f"is {value}, which is no number to sample with")
    try:
        return GenerationDefaults(
            eos_token_ids=tuple(dict.fromkeys(ids)),
            bos_token_id=bos if _is_id(bos) else None,
            **sampling,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = f"is {first['input']!r}: {first['msg']}"
        raise _wrong(folder / OWN, str(first["loc"][0]), said) from error


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(path: Path, field: str, said: str) -> SourceError:
    return SourceError(
        f"{field} of {path} {said}.",
        path="model",
        remedy=f"Correct {field} in {path.name}, or remove it.",
    )
