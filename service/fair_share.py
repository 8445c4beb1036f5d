"""Slots of a shared resource, shared between owners so that none can take them all."""

from collections import Counter


class FairShare:
    """One owner has at most half of the slots that the others leave, or a few if they are free.

    Two owners that want everything get a half and a quarter, a third gets an eighth, and so on.
    """

    def __init__(self, slots: int, *, at_least: int = 1) -> None:
        self._slots = slots
        self._at_least = at_least
        self._taken: Counter[str] = Counter()
        self._total = 0

    def take(self, owner: str) -> bool:
        """Take a slot, if the owner may have another one."""
        if not self.may_take(owner):
            return False
        self._taken[owner] += 1
        self._total += 1
        return True

    def may_take(self, owner: str) -> bool:
        """Whether the owner may have another slot."""
        taken = self._taken[owner]
        left_by_others = self._slots - self._total + taken
        return self._total < self._slots and taken < max(self._at_least, left_by_others // 2)

    def release(self, owner: str) -> None:
        """Return a slot."""
        self._total -= 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]
