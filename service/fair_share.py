"""Slots of a shared resource, shared between owners so that none can take them all."""

from collections import Counter


class FairShare:
    """One owner has at most half of the slots that the others leave, and always one if it is free.

    Two owners that want everything get a half and a quarter, a third gets an eighth, and so on.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._taken: Counter[str] = Counter()
        self._total = 0

    def take(self, owner: str) -> bool:
        """Take a slot, if the owner may have another one."""
        free_of_others = self._slots - self._total + self._taken[owner]
        if self._total >= self._slots or self._taken[owner] >= max(1, free_of_others // 2):
            return False
        self._taken[owner] += 1
        self._total += 1
        return True

    def release(self, owner: str) -> None:
        """Return a slot."""
        self._total -= 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self._slots - self._total
