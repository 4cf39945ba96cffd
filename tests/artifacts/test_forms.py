"""Which form of the weights computes a token."""

from __future__ import annotations

import numpy as np
import pytest

from artifacts.forms import by_role, planned, reproducible
from artifacts.manifest import Forms
from artifacts.session import Row

BY_ROLE = Forms(choice="by_role", prompts="prompts.onnx")
ADAPTIVE = Forms(choice="adaptive", prompts="prompts.onnx", rows=8)


def _row(slot: int, start: int, tokens: int, logits: int) -> Row:
    return Row(slot, start, np.arange(start, start + tokens), logits, 0.7, min(logits, 1))


def test_tokens_whose_logits_are_wanted_are_computed_last() -> None:
    """A prompt but its end comes first; its end, and who generates, in one run behind it."""
    rows = [_row(0, 10, 1, 1), _row(2, 0, 5, 1), _row(3, 4, 6, 0), _row(1, 7, 4, 4)]
    prompts, generated = planned(BY_ROLE, rows)
    assert prompts.is_prompts
    assert not generated.is_prompts
    assert [(row.slot, row.start, row.tokens.tolist(), row.logits) for row in prompts.rows] == [
        (2, 0, [0, 1, 2, 3], 0),
        (3, 4, [4, 5, 6, 7, 8, 9], 0),
    ]
    assert [(row.slot, row.start, row.tokens.tolist(), row.logits) for row in generated.rows] == [
        (0, 10, [10], 1),
        (2, 4, [4], 1),
        (1, 7, [7, 8, 9, 10], 4),
    ]
    assert {row.temperature for row in generated.rows} == {0.7}


def test_a_token_has_its_form_however_a_prompt_is_cut() -> None:
    """Chunks of any size come to the same, since only the last token's logits are wanted."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        length = int(rng.integers(1, 40))
        computed: dict[int, bool] = {}
        start = 0
        while start < length:
            count = int(rng.integers(1, length - start + 1))
            last = start + count == length
            for run in planned(BY_ROLE, [_row(0, start, count, int(last))]):
                for row in run.rows:
                    computed.update(dict.fromkeys(row.tokens.tolist(), run.is_prompts))
            start += count
        assert computed == {index: index < length - 1 for index in range(length)}


@pytest.mark.parametrize(("tokens", "is_prompts"), [(7, False), (8, True)])
def test_the_size_of_a_step_decides_where_that_was_chosen(tokens: int, is_prompts: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """From so many tokens on, all of a step, in one run."""
    rows = [_row(0, 0, tokens - 2, 1), _row(1, 5, 2, 1)]
    (run,) = planned(ADAPTIVE, rows)
    assert run.is_prompts is is_prompts
    assert run.rows is rows


def test_only_the_size_of_a_step_makes_results_depend_on_others() -> None:
    """What GetVariant tells of it."""
    assert [reproducible(forms) for forms in (None, BY_ROLE, ADAPTIVE)] == [True, True, False]
    assert [by_role(forms) for forms in (None, BY_ROLE, ADAPTIVE)] == [False, True, False]
