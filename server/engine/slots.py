"""Who owns which cache slot, what idle slots still remember, and the token budget.

A slot is free (empty), owned (a running sequence) or retained (its sequence ended; the tokens are
kept for a later prompt that begins alike). What begins alike is also copied from running
sequences: what they took over at once, the rest of their prompts when it is computed. Reserved plus
retained tokens never exceed the budget; retained ones go first, least recently used first. Pure
bookkeeping: knows nothing of memory, sessions or requests; whoever calls carries out what an
``Admission`` says.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import BugError
from server.engine.prefix_index import BLOCK, PrefixIndex


@dataclass(frozen=True, slots=True)
class Admission:
    """What to do to the cache for a new owner, in this order.

    Attributes:
        slot: The slot it owns now.
        reused: Tokens of its prompt that the slot holds after the copy.
        copy_from: Slot to copy ``reused`` tokens from, or None when they are in place.
        evicted: Slots whose memory is to be given back first.
    """

    slot: int
    reused: int
    copy_from: int | None
    evicted: tuple[int, ...]


class SlotTable:
    """The slots of one variant."""

    def __init__(self, slots: int, budget_tokens: int) -> None:
        self.slots = slots
        self.budget_tokens = budget_tokens
        self._free = list(range(slots))
        self._owned: dict[int, int] = {}  # slot -> reserved tokens
        self._retained: OrderedDict[int, int] = OrderedDict()  # slot -> tokens, oldest first
        self._index = PrefixIndex()

    @property
    def reserved_tokens(self) -> int:
        """Tokens promised to owners."""
        return sum(self._owned.values())

    @property
    def retained_tokens(self) -> int:
        """Tokens remembered for later prompts."""
        return sum(self._retained.values())

    @property
    def owned_slots(self) -> int:
        """Slots with a running sequence."""
        return len(self._owned)

    def admit(self, prompt: NDArray[np.int64], reserve: int) -> Admission | None:
        """Give a sequence a slot, reusing a remembered beginning where there is one.

        Args:
            prompt: (n,) its tokens; at least the last one is always computed anew.
            reserve: Tokens that it may come to hold.

        Returns:
            None when no slot or not enough budget is free now.
        """
        if reserve > self.budget_tokens - self.reserved_tokens:
            return None
        if not self._free and not self._retained:
            return None
        source, reused = self._index.longest(prompt[:-1])
        if source is not None and self._may_copy(source, reused, reserve):
            if source in self._retained:
                self._retained.move_to_end(source)
            slot, evicted = self._vacant(spare=source)
            self._owned[slot] = reserve
            return Admission(slot, reused, source, (*evicted, *self._shrink(spare=source)))
        if source is not None:
            self._drop(source)
            self._owned[source] = reserve
            # What both begin with is still there: for those that come at the same time.
            self._index.add(source, prompt[:reused])
            return Admission(source, reused, None, self._shrink())
        slot, evicted = self._vacant()
        self._owned[slot] = reserve
        return Admission(slot, 0, None, (*evicted, *self._shrink()))

    def computed(self, slot: int, prompt: NDArray[np.int64]) -> None:
        """An owner's prompt is computed: others that begin alike may copy it."""
        self._index.add(slot, prompt)

    def retain(self, slot: int, tokens: NDArray[np.int64]) -> bool:
        """End an ownership, remembering the tokens whose cache is computed.

        Returns:
            False when there was nothing worth keeping: give the slot's memory back.
        """
        self._disown(slot)
        spare = self.budget_tokens - self.reserved_tokens - self.retained_tokens
        if not BLOCK <= len(tokens) <= spare:
            self._put_back(slot)
            return False
        self._retained[slot] = len(tokens)
        self._index.add(slot, tokens)
        return True

    def free(self, slot: int) -> None:
        """End an ownership without remembering anything."""
        self._disown(slot)
        self._put_back(slot)

    def forget(self, tokens: NDArray[np.int64]) -> tuple[int, ...]:
        """Remember nothing any longer that begins like these tokens.

        Returns:
            The slots forgotten: give their memory back.
        """
        alike = tuple(slot for slot in self._index.alike(tokens) if slot in self._retained)
        for slot in alike:
            self._drop(slot)
            self._put_back(slot)
        return alike

    def clear(self) -> None:
        """Forget everything: the cache is gone."""
        self._free = list(range(self.slots))
        self._owned.clear()
        self._retained.clear()
        self._index.clear()

    def check_integrity(self) -> None:
        """Every slot has exactly one state, and the budget holds.

        Raises:
            BugError: They do not.
        """
        everyone = sorted([*self._free, *self._owned, *self._retained])
        if everyone != list(range(self.slots)):
            raise BugError(f"Slots are lost or shared: {everyone}.")
        if self.reserved_tokens + self.retained_tokens > self.budget_tokens:
            raise BugError("The token budget is exceeded.")

    def _may_copy(self, source: int, reused: int, reserve: int) -> bool:
        """Whether to copy from the source and leave it, rather than take it over.

        From a running sequence it can only be copied. What is remembered is left for others where
        a slot is free and the budget holds both, unless all of it is reused.
        """
        if source in self._owned:
            return True
        whole = self._retained[source]
        fits = self.reserved_tokens + reserve + whole <= self.budget_tokens
        return bool(self._free) and reused < whole and fits

    def _vacant(self, spare: int | None = None) -> tuple[int, tuple[int, ...]]:
        """A slot for a new owner, and those forgotten for it."""
        if self._free:
            return self._free.pop(0), ()
        slot = next(slot for slot in self._retained if slot != spare)
        self._drop(slot)
        return slot, (slot,)

    def _drop(self, slot: int) -> None:
        """Remember a slot's tokens no longer."""
        del self._retained[slot]
        self._index.remove(slot)

    def _shrink(self, spare: int | None = None) -> tuple[int, ...]:
        """Forget the least recently used until the budget holds; returns the slots forgotten."""
        evicted: list[int] = []
        while self.reserved_tokens + self.retained_tokens > self.budget_tokens:
            slot = next(slot for slot in self._retained if slot != spare)
            self._drop(slot)
            self._put_back(slot)
            evicted.append(slot)
        return tuple(evicted)

    def _disown(self, slot: int) -> None:
        if self._owned.pop(slot, None) is None:
            raise BugError(f"Slot {slot} has no owner to end.")
        self._index.remove(slot)

    def _put_back(self, slot: int) -> None:
        self._free.append(slot)
        # Low slots first: adjacent owners make narrow steps.
        self._free.sort()
