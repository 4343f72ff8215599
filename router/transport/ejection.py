"""Which replicas have given reason to be passed over, and when they are tried again.

    trusted -- lost two in a row --> ejected -- a probe answered in time --> trusted
                                        ^ probe late, lost or wrong: twice the pause |
                                        `---------------------------------------------'

A replica *loses* a dispatch when another answers it first although it was asked later, when its answer cannot be read,
or when it fails at what others can do. Whether an ejected replica is asked all the same, because nobody else holds an
expert, is not decided here.

A probe is a copy of a real dispatch whose answer nobody waits for. So a replica comes back by doing what it was ejected
for not doing, and no request pays for trying.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

EJECT_AFTER = 2
"""Dispatches lost in a row: one may be chance."""
FIRST_PROBE_S = 0.5
"""Seconds from ejection to the first probe."""
LONGEST_PROBE_S = 30.0
"""Seconds between two probes at most, and between two signs of life that begin the pauses anew at least: one that
answers always, and always late, would otherwise be probed without a pause."""
_FORGIVEN_S = 60.0
"""A replica that did well for so long begins anew with the shortest pause."""


@dataclass(slots=True)
class _Record:
    losses: int = 0
    is_ejected: bool = False
    ejected_at: float = 0.0
    probe_at: float = 0.0
    pause_s: float = FIRST_PROBE_S
    hurried_at: float = -inf
    readmitted_at: float = 0.0


class Ejection:
    """The evidence against replicas. Belongs to one thread; every `now` is of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self.ejected: frozenset[str] = frozenset()
        """Replicas to pass over where another can be had."""
        self.num_ejections = 0
        """Since the start."""

    @property
    def has_records(self) -> bool:
        """Tell whether anything speaks against anybody; if not, `won` would do nothing."""
        return bool(self._records)

    def won(self, replica_id: str, now: float) -> None:
        """Take note of an answer in time."""
        record = self._records.get(replica_id)
        if record is None:
            return
        if record.is_ejected:
            self._readmit(replica_id, now)
        elif now - record.readmitted_at > _FORGIVEN_S:
            del self._records[replica_id]
        else:
            record.losses = 0

    def lost(self, replica_id: str, now: float, weight: int = 1) -> bool:
        """Take note of a dispatch lost, or of evidence that weighs as much as several; tell whether that ejects it."""
        record = self._records.setdefault(replica_id, _Record(readmitted_at=now - _FORGIVEN_S))
        record.losses += weight
        if record.is_ejected or record.losses < EJECT_AFTER:
            return False
        recently = now - record.readmitted_at < _FORGIVEN_S
        record.pause_s = min(record.pause_s * 2, LONGEST_PROBE_S) if recently else FIRST_PROBE_S
        record.is_ejected, record.ejected_at, record.probe_at = True, now, now + record.pause_s
        self.num_ejections += 1
        self._publish()
        return True

    def due(self, now: float) -> list[str]:
        """Return the ejected replicas that are to be probed at the next occasion, until `probed` says that it came."""
        return [each for each, record in self._records.items() if record.is_ejected and now >= record.probe_at]

    def probed(self, replica_id: str, now: float) -> None:
        """Take note of a probe that was sent: the next one follows after a longer pause."""
        record = self._records[replica_id]
        record.pause_s = min(record.pause_s * 2, LONGEST_PROBE_S)
        record.probe_at = now + record.pause_s

    def hurry(self, replica_id: str, answered_at: float, now: float) -> None:
        """Begin an ejected replica's pauses anew if it answered anything since it was ejected: a sign of life."""
        record = self._records.get(replica_id)
        if record is None or not record.is_ejected or now < record.hurried_at + LONGEST_PROBE_S:
            return
        if answered_at > max(record.ejected_at, record.hurried_at) and now + FIRST_PROBE_S < record.probe_at:
            record.hurried_at, record.pause_s, record.probe_at = now, FIRST_PROBE_S, now + FIRST_PROBE_S

    def keep(self, replica_ids: frozenset[str]) -> None:
        """Forget replicas that are not among those of the placement."""
        self._records = {each: record for each, record in self._records.items() if each in replica_ids}
        self._publish()

    def _readmit(self, replica_id: str, now: float) -> None:
        record = self._records[replica_id]
        record.is_ejected, record.losses, record.readmitted_at = False, 0, now
        self._publish()

    def _publish(self) -> None:
        self.ejected = frozenset(each for each, record in self._records.items() if record.is_ejected)
