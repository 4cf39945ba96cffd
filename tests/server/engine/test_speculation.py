"""Drafted tokens change how fast an answer comes, never the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from server.engine import speculation as module
from server.engine.acceptance import Acceptance
from server.engine.draft_model import DraftModel
from server.engine.lane import Lane
from server.engine.messages import Attach, Drafting, Event, Finished, Generated, Sampling, Submit
from server.engine.prompt_lookup import NgramIndex, PromptLookup
from server.engine.sampler import Sampler
from server.engine.sequence import Sequence as Request
from server.engine.step_costs import StepCosts
from tests.server.engine.conftest import VOCAB, PrefixSession

if TYPE_CHECKING:
    from server.engine.drafter import Drafter


class MarkovSession(PrefixSession):
    """What comes next depends on the last two tokens alone."""

    def __init__(self, slots: int = 4, max_length: int = 512, *, noise: float = 0.0) -> None:
        super().__init__(slots, max_length)
        self.noise = noise

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        before, last = (0, *tokens)[-2:]
        rng = np.random.default_rng(before * VOCAB + last)
        logits = rng.standard_normal(VOCAB) * 3
        if self.noise:
            logits += self.noise * np.random.default_rng(last).standard_normal(VOCAB)
        return logits.astype(np.float32)


def lane_of(
    make_drafter: Callable[[], Drafter] | None = None, most: int = 6
) -> tuple[Lane, MarkovSession]:
    session = MarkovSession()
    drafting = make_drafter and Drafting(make_drafter(), make_drafter, most)
    lane = Lane(Attach("a", session, MarkovSession, 2048, 64, drafting=drafting), lambda: 0.0)
    return lane, session


def answers(lane: Lane, requests: Iterable[Submit]) -> tuple[dict[str, list[Any]], list[Finished]]:
    tokens: dict[str, list[Any]] = {}
    finished: list[Finished] = []
    for request in requests:
        tokens[request.request_id] = []
        assert lane.submit(request) is None
    while lane.busy:
        events: list[Event] = []
        lane.step(events)
        for event in events:
            if isinstance(event, Generated):
                tokens[event.request_id] += event.tokens
            else:
                assert isinstance(event, Finished)
                finished.append(event)
    lane.check_integrity()
    return tokens, finished


def model_like() -> DraftModel:
    """Of a model that is much like the one that checks."""
    return DraftModel(MarkovSession(noise=0.7), 64, lambda: 0.0)


def drafted(finished: Iterable[Finished]) -> tuple[int, int]:
    usages = [one.usage for one in finished]
    return sum(u.draft_tokens for u in usages), sum(u.accepted_tokens for u in usages)


SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 3},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 5, "min_p": 0.05},
    {"temperature": 0.9, "typical_p": 0.7},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"temperature": 0.7, "presence_penalty": 0.5, "min_tokens": 130, "stop_token_ids": {3, 5, 9}},
    {"temperature": 0.0, "bad_words": ((7,), (1, 2)), "logit_bias": ((9, 2.0),)},
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("drafter", [PromptLookup, model_like])
def test_answers_are_those_without_drafts(
    drafter: Callable[[], Drafter], sampling: dict[str, Any]
) -> None:
    """Every token with its log-probabilities, of several requests at a time; and drafts are used.

    Greedy and drawn: the same seed draws the same tokens, whatever was guessed.
    """
    more = {
        name: frozenset(value) if isinstance(value, set) else value
        for name, value in sampling.items()
    }
    requests = [
        Submit(str(n), "a", (1, 2, n, 3, n), Sampling(max_tokens=160 + n, seed=n, **more), 0.0)
        for n in range(4)
    ]
    plain, plainly = answers(lane_of()[0], requests)
    fast, faster = answers(lane_of(drafter)[0], requests)
    assert fast == plain
    assert drafted(plainly) == (0, 0)
    count, accepted = drafted(faster)
    assert count >= accepted > 0


@pytest.mark.parametrize("drafter", [PromptLookup, model_like])
def test_drafts_save_steps(drafter: Callable[[], Drafter]) -> None:
    """Each accepted guess is a step less."""
    request = Submit("r", "a", (1, 2, 3), Sampling(max_tokens=200, temperature=0.0), 0.0)
    lane, session = lane_of(drafter)
    _, (finished,) = answers(lane, [request])
    assert len(session.steps) == 200 - finished.usage.accepted_tokens
    assert finished.usage.completion_tokens == 200
    assert finished.usage.accepted_tokens > 20


def _frequencies(drafter: Callable[[], Drafter], draws: int) -> Counter[tuple[int, int]]:
    """How often which two tokens follow the first of an answer, by seed."""
    lane, session = lane_of(drafter, most=2)
    sampling = {"max_tokens": 4, "temperature": 1.0, "logit_bias": ((4, 60.0),), "min_tokens": 0}
    found: Counter[tuple[int, int]] = Counter()
    del sampling["logit_bias"]
    for seed in range(draws):
        request = Submit("r", "a", (1, 2), Sampling(seed=seed, **sampling), 0.0)  # type: ignore[arg-type]
        tokens, _ = answers(lane, [request])
        _, second, third, _ = (token.token_id for token in tokens["r"])
        found[second, third] += 1
    assert any(len(row.tokens) > 1 and row.start > 2 for rows in session.steps for row in rows)
    return found


def _fits(found: Counter[tuple[int, int]], draws: int) -> bool:
    """Whether the second token is drawn from the mixture that it should come from."""
    model = MarkovSession()
    first = special.softmax(model.logits([1, 2]).astype(np.float64))
    expected = sum(
        first[token] * special.softmax(model.logits([2, token]).astype(np.float64))
        for token in range(VOCAB)
    )
    counts = np.zeros(VOCAB)
    for (second, _), count in found.items():
        counts[second] += count
    common = expected * draws >= 8
    seen = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * draws
    return bool(stats.chisquare(seen, wanted).pvalue > 1e-3)


def test_drawn_tokens_follow_the_model_and_not_the_drafts() -> None:
    """By frequency; taking every guess would be noticed."""
    draws = 1500
    assert _fits(_frequencies(model_like, draws), draws)


def test_taking_every_guess_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    choose = Sampler.choose

    def credulous(sampler: Sampler, sequence: Request, position: int, drawn: int = -1) -> Any:
        token = choose(sampler, sequence, position, drawn)
        guess = int(sequence.tokens[sequence.known]) if sequence.missing > 1 else 0
        return type(token)(guess) if guess else token

    monkeypatch.setattr(Sampler, "choose", credulous)
    draws = 1500
    assert not _fits(_frequencies(model_like, draws), draws)


def test_a_request_that_stops_at_a_guess_ends_there() -> None:
    """What was guessed beyond its end is no part of it."""
    plain, _ = answers(
        lane_of()[0],
        [Submit("r", "a", (1, 2, 3), Sampling(max_tokens=120, temperature=0.0), 0.0)],
    )
    stop = plain["r"][100].token_id
    sampling = Sampling(
        max_tokens=120, temperature=0.0, min_tokens=90, stop_token_ids=frozenset({stop})
    )
    tokens, (finished,) = answers(
        lane_of(PromptLookup)[0], [Submit("r", "a", (1, 2, 3), sampling, 0.0)]
    )
    assert tokens["r"][-1].token_id == stop == finished.stop_token_id
    assert len(tokens["r"]) == finished.usage.completion_tokens


# What is worth drafting.


class Told:
    """A drafter for whoever only asks what is worth it."""

    def __init__(self, round_s: float = 0.0) -> None:
        self.round_s = round_s
        self.wanted: list[int] = []

    def reach(self, sequence: Request) -> int:
        return sequence.missing

    def draft(self, wanted: Iterable[tuple[Request, int]]) -> list[int]:
        self.wanted = [count for _, count in wanted]
        return self.wanted

    def copied(self, source: int, target: int, length: int) -> None: ...

    def released(self, slot: int, keep: int) -> None: ...

    def terminate(self) -> None: ...


def wanted(
    costs: Callable[[int], float],
    rates: Sequence[float],
    *,
    round_s: float = 0.0,
    room: int = 100,
    most: int = 8,
    adaptive: bool = True,
) -> list[int]:
    """Lengths for running sequences whose guesses were right so often."""
    told = Told(round_s)
    speculation = module.Speculation(told, most, adaptive=adaptive)
    shares = []
    for rate in rates:
        request = Request(Submit("r", "a", (1,), Sampling(max_tokens=100), 0.0))
        request.append(2, 0.0)
        request.computed = 1
        request.acceptance = Acceptance(rate)
        shares.append(module.Share(request, 1, samples=True))
    for tokens in range(1, 65):
        speculation._costs.note(tokens, costs(tokens))
    extended = speculation.extend(shares, len(shares) + room)
    return [share.drafted for share in extended]


def best_of_one(costs: Callable[[int], float], rate: float, round_s: float, most: int) -> int:
    """The length with the most tokens per second, by trying all."""

    def pace(length: int) -> float:
        expected = sum(rate**power for power in range(length + 1))
        return expected / (costs(1 + length) + length * round_s)

    best = max((n for n in range(most + 1) if rate**n >= 0.02), key=pace)
    return best if pace(best) > 1.02 * pace(0) else 0


@given(
    st.floats(0.05, 0.95),
    st.floats(0.0, 1.5),
    st.floats(0.0, 0.4),
    st.sampled_from([1, 4, 8]),
)
def test_one_sequence_gets_the_length_that_promises_most(
    rate: float, slope: float, round_s: float, most: int
) -> None:
    """Against trying all lengths."""

    def costs(tokens: int) -> float:
        return 1.0 + slope * (tokens - 1)

    (length,) = wanted(costs, [rate], round_s=round_s, most=most)
    expected = best_of_one(costs, rate, round_s, most)

    def pace(length: int) -> float:
        tokens = sum(rate**power for power in range(length + 1))
        return tokens / (costs(1 + length) + length * round_s)

    assert pace(length) == pytest.approx(pace(expected), rel=1e-6)


def test_where_it_does_not_pay_nothing_is_drafted() -> None:
    """Each token of a step costs as much as a step of its own."""
    assert wanted(float, [0.5, 0.9, 0.2]) == [0, 0, 0]
    assert wanted(lambda tokens: 1.0 + tokens / 100, [0.9], round_s=2.0) == [0]


def test_one_that_is_told_to_drafts_whatever_it_costs() -> None:
    """As many as it may, or what there is room for."""
    assert wanted(float, [0.5, 0.9, 0.2], adaptive=False) == [8, 8, 8]
    assert wanted(float, [0.5, 0.9, 0.2], adaptive=False, room=7) == [2, 2, 2]


def test_the_likeliest_get_the_room_there_is() -> None:
    """And no more than there is."""
    lengths = wanted(lambda tokens: 1.0 + tokens / 1000, [0.3, 0.95, 0.6], room=6)
    assert sum(lengths) == 6
    assert lengths[1] > lengths[2] >= lengths[0]


def test_what_was_given_up_is_tried_again_later() -> None:
    """Texts change: after a time that guesses were not worth it, one is made."""
    acceptance = Acceptance()
    for _ in range(20):
        acceptance.learn(4, 0)
    assert acceptance.rate < 0.05
    waited = 0
    while acceptance.rate < 0.3:
        acceptance.hope()
        waited += 1
    assert 10 < waited < 300
    acceptance.learn(4, 0)
    assert acceptance.rate < 0.2


def test_costs_are_learnt_and_forgotten() -> None:
    """Between two measures on the line; above all of them nothing more, so that it is tried."""
    costs = StepCosts()
    assert costs.estimate(3) == 0.0
    costs.note(2, 1.0)
    costs.note(6, 3.0)
    assert [costs.estimate(tokens) for tokens in (1, 2, 4, 6, 9)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    costs.note(6, 5.0)
    assert costs.estimate(6) == 3.5
    assert costs.knows(6)
    for _ in range(2000):
        costs.note(2, 1.0)
    assert not costs.knows(6)
    assert costs.estimate(6) == 1.0


# Looking up.


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 50))
def test_the_index_finds_what_a_search_finds(tokens: list[int], prompt: int) -> None:
    """The latest place where the last three tokens came before, else the last two."""
    prompt = min(prompt, len(tokens))
    request = Request(Submit("r", "a", tuple(tokens[:prompt]), Sampling(max_tokens=60), 0.0))
    index = NgramIndex()
    for known in range(prompt, len(tokens) + 1):
        if known > prompt:
            request.append(tokens[known - 1], 0.0)
        expected = None
        for size in (3, 2):
            ends = [
                end
                for end in range(size, known)
                if known > size and tokens[end - size : end] == tokens[known - size : known]
            ]
            if ends:
                expected = ends[-1]
                break
        assert index.find(request) == expected


def test_ids_of_the_largest_vocabularies_do_not_collide() -> None:
    """Three of them fit into one key."""
    high = 2_000_000
    prompt = (high, high - 1, high - 2, 7, high, high - 1, high - 2)
    request = Request(Submit("r", "a", prompt, Sampling(max_tokens=9), 0.0))
    lookup = PromptLookup()
    assert lookup.reach(request) > 0
    assert lookup.draft([(request, 3)]) == [3]
    assert request.tokens[7:10].tolist() == [7, high, high - 1]


def test_what_repeats_itself_goes_on() -> None:
    """A draft may reach into what it is just writing."""
    request = Request(Submit("r", "a", (5, 6, 5, 6, 5, 6), Sampling(max_tokens=9), 0.0))
    lookup = PromptLookup()
    assert lookup.reach(request)
    lookup.draft([(request, 5)])
    assert request.tokens[6:11].tolist() == [5, 6, 5, 6, 5]


# A model that drafts.


def test_a_draft_model_catches_up_a_step_at_a_time() -> None:
    """A long prompt is computed beside the streams of others, and guessed for once that is done."""
    session = MarkovSession()
    model = DraftModel(session, 16, lambda: 0.0)
    prompt = tuple(index % VOCAB for index in range(50))
    request = Request(Submit("r", "a", prompt, Sampling(max_tokens=9), 0.0))
    request.slot = 1
    request.append(3, 0.0)
    request.computed = 50
    counts = [model.draft([(request, 4)])[0] for _ in range(3)]
    assert counts == [0, 0, 4]
    assert [sum(len(row.tokens) for row in rows) for rows in session.steps] == [
        16,
        16,
        16,
        3,
        1,
        1,
        1,
    ]
    expected = [*prompt, 3]
    for _ in range(4):
        expected.append(int(session.logits(expected).argmax()))
    assert request.tokens[51:55].tolist() == expected[51:]


def test_a_draft_model_ends_with_its_own_context() -> None:
    """It guesses as far as it can see."""
    model = DraftModel(MarkovSession(max_length=20), 16, lambda: 0.0)
    request = Request(Submit("r", "a", tuple(range(18)), Sampling(max_tokens=9), 0.0))
    assert model.reach(request) == 2
    for _ in range(5):
        request.append(1, 0.0)
    assert model.reach(request) == 0
