"""In which order tenants' sequences get slots: each tenant in turn."""

from __future__ import annotations


class Turns:
    """Numbers sequences so that, where several tenants wait, a slot goes to each of them in turn.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996) with sequences of equal cost: a sequence's number is the one
    after its tenant's last, but at least that of whoever got a slot most recently. So nobody gains by asking for many
    at once, nobody loses by having been away, and everybody's number is the smallest at last. With one tenant, numbers
    are in order of arrival.
    """

    def __init__(self) -> None:
        self._now = 0
        self._next: dict[str, int] = {}

    def take(self, tenant: str) -> int:
        """Return the number of a tenant's next sequence."""
        number = max(self._next.get(tenant, 0), self._now)
        self._next[tenant] = number + 1
        return number

    def reach(self, number: int) -> None:
        """Take note that a sequence of this number got a slot."""
        if number <= self._now:
            return
        self._now = number
        self._next = {tenant: following for tenant, following in self._next.items() if following > number}
