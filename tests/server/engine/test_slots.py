"""The slot table under any sequence of operations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from artifacts.errors import BugError
from server.engine.prefix_index import BLOCK, PrefixIndex
from server.engine.slots import SlotTable

SLOTS, BUDGET = 4, 200


def _prompt(family: int, length: int) -> np.ndarray:
    """Prompts of one family begin alike."""
    return np.arange(length, dtype=np.int64) + 1000 * family


class Slots(RuleBasedStateMachine):
    """Admits, ends and forgets at random, with a model of what each slot's memory holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(SLOTS, BUDGET)
        self.memory: dict[int, np.ndarray] = {}  # slot -> tokens whose cache is computed
        self.owners: dict[int, tuple[np.ndarray, int]] = {}

    @rule(family=st.integers(0, 2), length=st.integers(1, 90), extra=st.integers(1, 60))
    def admit(self, family: int, length: int, extra: int) -> None:
        prompt = _prompt(family, length)
        reserve = length + extra
        admission = self.table.admit(prompt, reserve)
        fits = sum(r for _, r in self.owners.values()) + reserve <= BUDGET
        if admission is None:
            assert not fits or len(self.owners) == SLOTS
            return
        assert fits
        assert admission.slot not in self.owners, "a slot has two owners"
        for slot in admission.evicted:
            assert slot not in self.owners
            self.memory.pop(slot, None)
        if admission.copy_from is not None:
            self.memory[admission.slot] = self.memory[admission.copy_from][: admission.reused]
        held = self.memory.get(admission.slot, prompt[:0])[: admission.reused]
        assert held.tolist() == prompt[: admission.reused].tolist(), "reused tokens differ"
        assert admission.reused < length, "nothing is left to compute"
        assert admission.reused == 0 or admission.reused >= BLOCK
        self.memory[admission.slot] = held
        self.owners[admission.slot] = (prompt, reserve)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.owners)))
        self.table.computed(slot, self.owners[slot][0])
        self.memory[slot] = self.owners[slot][0]

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), computed=st.integers(0, 90), retain=st.booleans())
    def end(self, data: st.DataObject, computed: int, retain: bool) -> None:  # noqa: FBT001
        slot = data.draw(st.sampled_from(sorted(self.owners)))
        prompt, _ = self.owners.pop(slot)
        tokens = prompt[:computed]
        if retain and self.table.retain(slot, tokens):
            self.memory[slot] = tokens
            return
        if not retain:
            self.table.free(slot)
        self.memory.pop(slot, None)

    @rule()
    def clear(self) -> None:
        self.table.clear()
        self.memory.clear()
        self.owners.clear()

    @invariant()
    def integrity(self) -> None:
        self.table.check_integrity()
        assert self.table.reserved_tokens == sum(r for _, r in self.owners.values())
        assert self.table.owned_slots == len(self.owners)


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_longest_prefix_is_taken_and_the_longer_memory_is_kept() -> None:
    """Of two remembered prompts the one with more in common is copied, and stays for others."""
    table = SlotTable(4, 1000)
    for family, length in ((0, 50), (1, 60)):
        admission = table.admit(_prompt(family, length), length + 1)
        assert admission is not None
        assert table.retain(admission.slot, _prompt(family, length))
    prompt = np.concatenate([_prompt(1, 40), _prompt(5, 10)])
    admission = table.admit(prompt, 60)
    assert admission is not None
    assert (admission.reused, admission.copy_from) == (40, 1)
    assert admission.slot not in (0, 1)


def test_whole_memory_is_taken_over() -> None:
    """A prompt that continues a remembered one takes its slot; nothing is copied."""
    table = SlotTable(2, 1000)
    first = table.admit(_prompt(0, 50), 51)
    assert first is not None
    table.retain(first.slot, _prompt(0, 50))
    second = table.admit(_prompt(0, 70), 80)
    assert second is not None
    assert (second.slot, second.reused, second.copy_from) == (first.slot, 50, None)


def test_a_running_sequence_is_copied_once_its_prompt_is_computed() -> None:
    """Not before, and it keeps its slot."""
    table = SlotTable(3, 1000)
    first = table.admit(_prompt(0, 50), 60)
    assert first is not None
    before = table.admit(_prompt(0, 45), 60)
    assert before is not None
    assert (before.reused, before.copy_from) == (0, None)
    table.computed(first.slot, _prompt(0, 50))
    after = table.admit(_prompt(0, 45), 60)
    assert after is not None
    assert (after.reused, after.copy_from, after.evicted) == (44, first.slot, ())
    assert len({first.slot, before.slot, after.slot}) == 3


def test_what_was_taken_over_is_copied_at_once() -> None:
    """Streams that come together share a remembered beginning, also where no slot is free."""
    table = SlotTable(3, 1000)
    for family in (0, 1, 2):
        admission = table.admit(_prompt(family, 50), 60)
        assert admission is not None
        table.computed(admission.slot, _prompt(family, 50))
    for slot in range(3):
        assert table.retain(slot, _prompt(slot, 50))
    found = []
    for odd in range(3):
        admission = table.admit(np.append(_prompt(1, 40), [odd, odd]).astype(np.int64), 60)
        assert admission is not None
        found.append((admission.slot, admission.reused, admission.copy_from, admission.evicted))
    assert found == [(1, 40, None, ()), (0, 40, 1, (0,)), (2, 40, 1, (2,))]


def test_for_a_copy_of_a_running_sequence_what_is_remembered_goes() -> None:
    """Where no slot is free."""
    table = SlotTable(2, 1000)
    for family in (0, 1):
        admission = table.admit(_prompt(family, 50), 60)
        assert admission is not None
        table.computed(admission.slot, _prompt(family, 50))
    assert table.retain(0, _prompt(0, 50))
    copy = table.admit(_prompt(1, 50), 60)
    assert copy is not None
    assert (copy.slot, copy.reused, copy.copy_from, copy.evicted) == (0, 49, 1, (0,))


families = st.builds(
    lambda family, length, odd: np.append(_prompt(family, length), odd).astype(np.int64),
    st.integers(0, 2),
    st.integers(0, 70),
    st.integers(0, 3),
)


@given(st.lists(st.tuples(st.integers(0, 5), families), max_size=12), families)
def test_the_index_finds_what_comparing_all_finds(
    added: list[tuple[int, np.ndarray]], prompt: np.ndarray
) -> None:
    """Against each slot's tokens in turn, also after a slot got others."""
    index, known = PrefixIndex(), dict[int, np.ndarray]()
    for slot, tokens in added:
        index.add(slot, tokens)
        known[slot] = tokens
    lengths = {}
    for slot, tokens in known.items():
        equal = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(tokens.tolist(), prompt.tolist(), strict=False)
        )
        lengths[slot] = sum(1 for _ in equal)
    longest = max(lengths.values(), default=0)
    slot, length = index.longest(prompt)
    assert length == (longest if longest >= BLOCK else 0)
    assert (slot is None) if length == 0 else (lengths[slot or 0] == longest)
    assert set(index.alike(prompt)) == {one for one, n in lengths.items() if n >= BLOCK}
    for slot in known:
        index.remove(slot)
    assert index.longest(prompt) == (None, 0)
    assert not index._slots


def test_integrity_check_can_fail() -> None:
    """The check finds a slot that is lost and a budget that is exceeded."""
    lost = SlotTable(2, 10)
    lost._free.pop()
    with pytest.raises(BugError, match="lost"):
        lost.check_integrity()
    over = SlotTable(2, 10)
    over._owned[over._free.pop()] = 11
    with pytest.raises(BugError, match="budget"):
        over.check_integrity()


def test_ending_twice_is_a_bug() -> None:
    """A slot that nobody owns cannot be freed."""
    with pytest.raises(BugError, match="no owner"):
        SlotTable(1, 10).free(0)
