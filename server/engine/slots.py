"""Who owns which cache slot, what idle slots still remember, and the token budget.

A slot is free (empty), owned (a running sequence) or retained (its sequence ended; the tokens are
kept for a later prompt that begins alike). Reserved plus retained tokens never exceed the budget;
retained ones go first, least recently used first. Pure bookkeeping: knows nothing of memory,
sessions or requests; whoever calls carries out what an ``Admission`` says.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import BugError

MIN_PREFIX = 16
"""Shorter common beginnings (a lone bos, say) are not worth remembering a slot for."""


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
        self._retained: OrderedDict[int, NDArray[np.int64]] = OrderedDict()  # oldest first

    @property
    def reserved_tokens(self) -> int:
        """Tokens promised to owners."""
        return sum(self._owned.values())

    @property
    def retained_tokens(self) -> int:
        """Tokens remembered for later prompts."""
        return sum(len(tokens) for tokens in self._retained.values())

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
        source, reused = self._longest_prefix(prompt)
        if source is not None and self._can_share(source, reused, reserve):
            slot = self._free.pop(0)
            self._retained.move_to_end(source)
            self._owned[slot] = reserve
            return Admission(slot, reused, source, self._shrink(spare=source))
        if source is not None:
            slot = source
            del self._retained[slot]
        elif self._free:
            slot = self._free.pop(0)
        else:
            slot, _ = self._retained.popitem(last=False)
            self._owned[slot] = reserve
            return Admission(slot, 0, None, (slot, *self._shrink()))
        self._owned[slot] = reserve
        return Admission(slot, reused, None, self._shrink())

    def retain(self, slot: int, tokens: NDArray[np.int64]) -> bool:
        """End an ownership, remembering the tokens whose cache is computed.

        Returns:
            False when there was nothing worth keeping: give the slot's memory back.
        """
        self._disown(slot)
        spare = self.budget_tokens - self.reserved_tokens - self.retained_tokens
        if not MIN_PREFIX <= len(tokens) <= spare:
            self._put_back(slot)
            return False
        self._retained[slot] = tokens
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
        alike = [
            slot
            for slot, retained in self._retained.items()
            if _common(retained, tokens) >= MIN_PREFIX
        ]
        for slot in alike:
            del self._retained[slot]
            self._put_back(slot)
        return tuple(alike)

    def clear(self) -> None:
        """Forget everything: the cache is gone."""
        self._free = list(range(self.slots))
        self._owned.clear()
        self._retained.clear()

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

    def _longest_prefix(self, prompt: NDArray[np.int64]) -> tuple[int | None, int]:
        best: int | None = None
        longest = MIN_PREFIX - 1
        for slot, tokens in self._retained.items():
            if min(len(tokens), len(prompt) - 1) <= longest:
                continue
            common = _common(tokens, prompt[:-1])
            if common > longest:
                best, longest = slot, common
        return best, (longest if best is not None else 0)

    def _can_share(self, source: int, reused: int, reserve: int) -> bool:
        """Whether to copy from the source and leave it for others, rather than take it over."""
        whole = len(self._retained[source])
        fits = self.reserved_tokens + reserve + whole <= self.budget_tokens
        return bool(self._free) and reused < whole and fits

    def _shrink(self, spare: int | None = None) -> tuple[int, ...]:
        """Forget the least recently used until the budget holds; returns the slots forgotten."""
        evicted: list[int] = []
        while self.reserved_tokens + self.retained_tokens > self.budget_tokens:
            slot = next(slot for slot in self._retained if slot != spare)
            del self._retained[slot]
            self._put_back(slot)
            evicted.append(slot)
        return tuple(evicted)

    def _disown(self, slot: int) -> None:
        if self._owned.pop(slot, None) is None:
            raise BugError(f"Slot {slot} has no owner to end.")

    def _put_back(self, slot: int) -> None:
        self._free.append(slot)
        # Low slots first: adjacent owners make narrow steps.
        self._free.sort()


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """With how many equal tokens the two begin."""
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length
