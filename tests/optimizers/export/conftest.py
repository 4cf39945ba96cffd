"""Exported small models and their greedy oracle, made once per session and by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks import zoo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from optimizers.export import Exported

NEW_TOKENS = 64
# One longer than any window; the third and fourth are of one length, so that they can be swapped.
PROMPTS = (40, 1, 23, 23, 9)
# By model, the seed of each: with these, the text that follows visits many tokens. Small random
# models mostly end in a short cycle, which says little of what came before.
PROMPT_SEEDS = {
    "llama": (1, 28, 2, 4, 5),
    "mistral": (0, 2, 1, 6, 5),
    "gemma2": (1, 0, 2, 3, 4),
    "gemma3": (0, 1, 2, 4, 3),
    "qwen2": (2, 0, 21, 22, 7),
    "qwen3": (1, 2, 0, 4, 3),
    "phi3": (6, 1, 2, 4, 10),
    "phi3_window": (0, 1, 5, 7, 2),
    "gpt2": (1, 30, 3, 23, 35),
    "opt": (165, 70, 18, 110, 162),
    "gpt_neox": (253, 2, 83, 118, 3),
    "smollm3": (7, 135, 41, 57, 46),
    "granite": (2, 4, 1, 5, 3),
    "olmo2": (2, 3, 5, 6, 8),
    "phi": (7, 9, 51, 58, 8),
    "mixtral": (2, 4, 3, 6, 0),
    "bloom": (0, 2, 5, 6, 1),
    "falcon": (7, 26, 4, 59, 11),
    "stablelm": (2, 21, 5, 20, 1),
}


@dataclass(frozen=True, slots=True)
class Served:
    """One small model, its verified graph, and what transformers generates from some prompts."""

    name: str
    folder: Path
    exported: Exported
    prompts: tuple[NDArray[np.int64], ...]
    expected: tuple[tuple[int, ...], ...]


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads that wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def zoo_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the Hugging Face folder of a small model by its name."""

    @cache
    def folder(name: str) -> Path:
        return zoo.write_model(tmp_path_factory.mktemp("models") / name, name)

    return folder


@pytest.fixture(scope="session")
def exported(
    zoo_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """Give a small model's verified graph by its name."""
    from optimizers.export import export

    @cache
    def make(name: str) -> Exported:
        out = tmp_path_factory.mktemp("exports") / name
        return export(zoo_folder(name), out, progress=lambda *_: None, threads=1)

    return make


@pytest.fixture(scope="session")
def served(
    zoo_folder: Callable[[str], Path], exported: Callable[[str], Exported]
) -> Callable[[str], Served]:
    """Give a small model's verified graph and its expected text, by its name."""

    @cache
    def serve(name: str) -> Served:
        prompts = tuple(
            np.random.default_rng(seed).integers(0, zoo.VOCABULARY, length).astype(np.int64)
            for seed, length in zip(PROMPT_SEEDS[name], PROMPTS, strict=True)
        )
        folder = zoo_folder(name)
        return Served(name, folder, exported(name), prompts, generate(folder, prompts))

    return serve


def generate(folder: Path, prompts: tuple[NDArray[np.int64], ...]) -> tuple[tuple[int, ...], ...]:
    """Continue each prompt greedily with transformers' own ``generate``."""
    import torch

    from optimizers.export.reference import load_module

    module = load_module(folder)
    module.generation_config.eos_token_id = None  # all texts get their full length
    texts = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt)[None]
        arguments: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
        text = module.generate(ids, attention_mask=torch.ones_like(ids), **arguments)
        texts.append(tuple(text[0, len(prompt) :].tolist()))
    return tuple(texts)
