"""Sampling against slow, sorting oracles."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from artifacts.scores import in_blocks, score
from server.engine.distribution import block_sums, draw, top_indices, top_tokens
from server.engine.messages import Sampling, Submit, Token
from server.engine.randomness import Uniforms
from server.engine.sampler import Sampler, Unsampled
from server.engine.sequence import Sequence

uniforms = Uniforms().at

# A bias of nothing makes the sampler compute what the session would give it otherwise.
ALONE = ((0, 0.0),)


def _sequence(sampling: Sampling, prompt: tuple[int, ...] = (1, 2, 3)) -> Sequence:
    return Sequence(Submit("r", "v", prompt, sampling, 0.0))


def _sample(sampler: Sampler, logits: np.ndarray, *sequences: Sequence) -> list[Any]:
    """Sample as a lane does: the session computes what the sampler wants of it."""
    wanted = [sampler.temperature(sequence) for sequence in sequences]
    sampler.read(score(logits, wanted))
    drawn = itertools.count()
    return [
        sampler.choose(sequence, position, next(drawn) if wanted[position] else -1)
        for position, sequence in enumerate(sequences)
    ]


def _drawn(scores: np.ndarray, sampling: Sampling, position: int) -> int:
    sequence = _sequence(sampling)
    sequence.known = position
    (token,) = _sample(Sampler(len(scores)), scores[None], sequence)
    assert isinstance(token, Token)
    return token.token_id


DRAWS = 10_000


def _oracle(scores: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The distribution to draw from, by sorting everything."""
    scores = scores.astype(np.float64)
    keep = np.ones(len(scores), bool)
    if 0 < top_k < len(scores):
        keep &= scores >= np.sort(scores)[-top_k]
    p = special.softmax(np.where(keep, scores, -np.inf))
    if top_p < 1:
        above = np.array([p[p > q].sum() for q in p])
        keep &= above < top_p
    keep &= p >= min_p * p.max()
    return special.softmax(np.where(keep, scores, -np.inf))


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.2), (20, 0.8, 0.05), (1, 1.0, 0.0)],
)
@pytest.mark.parametrize("bias", [(), ALONE], ids=["of the session", "of the sampler"])
def test_draw_follows_the_sorted_distribution(
    top_k: int, top_p: float, min_p: float, bias: tuple[tuple[int, float], ...]
) -> None:
    """Frequencies of 20,000 draws fit the oracle; nothing outside its support is drawn."""
    scores = (np.random.default_rng(3).standard_normal(300) * 2).astype(np.float32)
    expected = _oracle(scores, top_k, top_p, min_p)
    counts = np.zeros(300)
    sampling = Sampling(
        max_tokens=3, top_k=top_k, top_p=top_p, min_p=min_p, seed=11, logit_bias=bias
    )
    for position in range(DRAWS):
        counts[_drawn(scores, sampling, position)] += 1
    assert counts[expected == 0].sum() == 0
    support = expected > 0
    if support.sum() > 1:
        big = expected * DRAWS >= 5
        observed = np.append(counts[big], counts[~big].sum())
        wanted = np.append(expected[big], expected[~big].sum()) * DRAWS
        if wanted[-1] < 5:
            observed, wanted = observed[:-1], wanted[:-1] * observed[:-1].sum() / wanted[:-1].sum()
        assert stats.chisquare(observed, wanted).pvalue > 1e-4
        # The test can fail: a distribution a little off is rejected.
        skewed, (second, first) = wanted.copy(), np.argsort(wanted)[-2:]
        skewed[second] += 0.2 * wanted[first]
        skewed[first] *= 0.8
        assert stats.chisquare(observed, skewed).pvalue < 1e-4


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 700),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    scale=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    bias=st.sampled_from([(), ALONE]),
)
def test_draw_stays_in_the_support(
    *,
    seed: int,
    size: int,
    top_k: int,
    top_p: float,
    min_p: float,
    scale: float,
    bias: tuple[tuple[int, float], ...],
) -> None:
    """Whatever the filters, the drawn token lies in the oracle's support, up to rounding."""
    scores = (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)
    slack = _oracle(scores, top_k, min(top_p + 1e-5, 1.0), max(min_p - 1e-5, 0.0))
    sampling = Sampling(
        max_tokens=3, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, logit_bias=bias
    )
    assert slack[_drawn(scores, sampling, size)] > 0


@given(
    scores=st.lists(st.integers(-5, 5), min_size=1, max_size=600),
    data=st.data(),
)
def test_top_indices_equal_a_full_sort(scores: list[int], data: st.DataObject) -> None:
    """The k highest, ties by index, equal a stable sort of everything."""
    array = np.array(scores, np.float32)
    k = data.draw(st.integers(1, len(scores)))
    maxima = in_blocks(array[None])[0].max(axis=1)
    inside = np.flatnonzero(array >= np.sort(array)[-k])
    assert top_tokens(array, maxima, k).tolist() == inside.tolist()
    best = np.argsort(-array, kind="stable")[:k]
    assert top_indices(array, maxima, k).tolist() == best.tolist()


@pytest.mark.parametrize("size", [1, 127, 128, 129, 256, 1000])
def test_extreme_numbers_draw_a_token_with_weight(size: int) -> None:
    """The ends of [0, 1) point at tokens that exist, whatever the blocks."""
    weights = np.zeros(size, np.float32)
    weights[size // 2] = 1.0
    sums = block_sums(in_blocks(weights[None])[0])
    for number in (0.0, 0.5, 1 - 2.0**-53, 1.0):
        drawn = draw(weights.copy(), sums, top_p=1.0, min_p=0.0, numbers=iter([number]))
        assert drawn == size // 2


def test_order_of_processing_equals_the_naive_one() -> None:
    """Bias, then repetition over prompt and output, presence and frequency over output."""
    rng = np.random.default_rng(0)
    vocab = 50
    for trial in range(50):
        logits = (rng.standard_normal((1, vocab)) * 4).astype(np.float32)
        bias = ((3, 2.5), (7, -4.0))
        sampling = Sampling(
            max_tokens=20,
            temperature=0.0,
            logit_bias=bias,
            repetition_penalty=1.7,
            presence_penalty=0.9,
            frequency_penalty=0.4,
        )
        sequence = _sequence(sampling)
        sampler = Sampler(vocab)
        output: list[int] = []
        for _ in range(8):
            expected = logits[0].copy()
            for token, value in bias:
                expected[token] += value
            for token in {1, 2, 3, *output}:
                value = expected[token]
                expected[token] = value / 1.7 if value > 0 else value * 1.7
            for token in set(output):
                expected[token] -= 0.9 + 0.4 * output.count(token)
            (token,) = _sample(sampler, logits, sequence)
            assert token is not None
            assert token.token_id == int(expected.argmax()), trial
            sequence.append(token.token_id, 0.0)
            output.append(token.token_id)
        assert len(set(output)) > 1


def test_logprobs_are_of_the_raw_distribution() -> None:
    """Bias and temperature choose the token; its log-probability ignores them."""
    logits = (np.random.default_rng(5).standard_normal((1, 400)) * 3).astype(np.float32)
    sampling = Sampling(max_tokens=3, temperature=0.0, logit_bias=((17, 100.0),), logprobs=4)
    (token,) = _sample(Sampler(400), logits, _sequence(sampling))
    assert token is not None
    expected = special.log_softmax(logits[0].astype(np.float64))
    assert token.token_id == 17
    assert token.logprob == pytest.approx(expected[17], abs=1e-4)
    best = np.argsort(-expected)[:4]
    assert [entry.token_id for entry in token.top] == best.tolist()
    assert [entry.logprob for entry in token.top] == pytest.approx(expected[best], abs=1e-4)


def test_non_finite_logits_give_no_token() -> None:
    """A row of NaN ends its own request and no other."""
    logits = np.zeros((2, 10), np.float32)
    logits[0] = np.nan
    logits[1, 4] = 1
    sampling = Sampling(max_tokens=3, temperature=0.0)
    tokens = _sample(Sampler(10), logits, _sequence(sampling), _sequence(sampling))
    assert tokens[0] is Unsampled.NOT_FINITE
    assert tokens[1] is not None
    assert tokens[1].token_id == 4


@pytest.mark.parametrize("bias", [(), ALONE], ids=["of the session", "of the sampler"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("where", [0, 399])
def test_one_logit_that_is_no_number_gives_no_token(
    where: int, temperature: float, bias: tuple[tuple[int, float], ...]
) -> None:
    """Also when all others are finite."""
    logits = np.zeros((1, 400), np.float32)
    logits[0, where] = np.nan
    sampling = Sampling(max_tokens=3, temperature=temperature, logit_bias=bias)
    with np.errstate(invalid="ignore"):
        assert _sample(Sampler(400), logits, _sequence(sampling)) == [Unsampled.NOT_FINITE]


def test_a_penalty_does_not_choose_what_is_no_number() -> None:
    """A graph may not tell of one such logit; the sampler sees it where it looks itself."""
    logits = np.zeros((1, 400), np.float32)
    scores = score(logits, [0.0])
    logits[0, 7] = np.nan
    sampling = Sampling(max_tokens=3, temperature=0.0, logit_bias=ALONE)
    sampler = Sampler(400)
    sampler.read(scores)
    assert sampler.choose(_sequence(sampling), 0) == Unsampled.NOT_FINITE


def test_rows_of_every_kind_share_a_step() -> None:
    """Greedy, sampled, narrowed and penalised rows get what each would get alone."""
    rng = np.random.default_rng(8)
    logits = (rng.standard_normal((6, 500)) * 2).astype(np.float32)
    kinds = [
        Sampling(max_tokens=3, temperature=0.0, logprobs=2),
        Sampling(max_tokens=3, temperature=0.8, top_p=0.9, seed=1),
        Sampling(max_tokens=3, temperature=1.0, top_k=7, seed=2),
        Sampling(max_tokens=3, temperature=1.3, repetition_penalty=1.4, seed=3),
        Sampling(max_tokens=3, temperature=1.0, min_p=0.1, seed=4),
        Sampling(max_tokens=3, temperature=0.0, logit_bias=((9, 50.0),)),
    ]
    alone = [
        _sample(Sampler(500), logits[index : index + 1], _sequence(kind))[0]
        for index, kind in enumerate(kinds)
    ]
    assert _sample(Sampler(500), logits, *map(_sequence, kinds)) == alone


def test_sampling_leaves_the_logits_alone() -> None:
    """The rows belong to the session."""
    logits = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    before = logits.copy()
    sampling = Sampling(max_tokens=3, temperature=0.5, top_p=0.5, repetition_penalty=1.5, seed=3)
    _sample(Sampler(64), logits, _sequence(sampling))
    assert (logits == before).all()


def test_tiny_temperature_is_greedy_and_finite() -> None:
    """No overflow where logits are divided by almost nothing."""
    logits = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32) * 50
    sampling = Sampling(max_tokens=3, temperature=1e-6)
    (token,) = _sample(Sampler(64), logits, _sequence(sampling))
    assert token is not None
    assert token.token_id == int(logits.argmax())


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (1, 5), (2**64 - 1, 2**40), (77, 3)])
def test_uniforms_are_philox_s(seed: int, position: int) -> None:
    """They are those of a generator that is made for this seed and position."""
    words = np.random.Philox(key=seed, counter=[0, position, 0, 0]).random_raw(11).tolist()
    expected = [(word >> 11) * 2.0**-53 for word in words]
    assert expected == list(itertools.islice(uniforms(seed, position), 11))


def test_uniforms_may_be_read_in_turns() -> None:
    """Readers of one generator do not disturb each other, across their blocks of four."""
    apart = [list(itertools.islice(uniforms(5, position), 9)) for position in (1, 2)]
    turns = list(itertools.islice(zip(uniforms(5, 1), uniforms(5, 2), strict=False), 9))
    assert apart == [list(numbers) for numbers in zip(*turns, strict=True)]


def test_uniforms_depend_on_seed_and_position_alone() -> None:
    """Same seed and position, same numbers; else others, and they look uniform."""
    first = list(itertools.islice(uniforms(5, 9), 6))
    assert first == list(itertools.islice(uniforms(5, 9), 6))
    assert first != list(itertools.islice(uniforms(5, 10), 6))
    assert first != list(itertools.islice(uniforms(6, 9), 6))
    numbers = [next(uniforms(123, position)) for position in range(4000)]
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert next(uniforms(2**64 - 1, 0)) < 1
