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

EJECT_AFTER = 2
"""Dispatches lost in a row: one may be chance."""
FIRST_PROBE_S = 0.5
"""Seconds from ejection to the first probe."""
_LONGEST_PROBE_S = 30.0
_FORGIVEN_S = 60.0
"""A replica that did well for so long begins anew with the shortest pause."""


@dataclass(slots=True)
class _Record:
    losses: int = 0
    is_ejected: bool = False
    probe_at: float = 0.0
    pause_s: float = FIRST_PROBE_S
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
        record.pause_s = min(record.pause_s * 2, _LONGEST_PROBE_S) if recently else FIRST_PROBE_S
        record.is_ejected, record.probe_at = True, now + record.pause_s
        self.num_ejections += 1
        self._publish()
        return True

    def due(self, now: float) -> list[str]:
        """Return the ejected replicas that are to be probed now; each is due again after a longer pause."""
        due = [each for each, record in self._records.items() if record.is_ejected and now >= record.probe_at]
        for replica_id in due:
            record = self._records[replica_id]
            record.pause_s = min(record.pause_s * 2, _LONGEST_PROBE_S)
            record.probe_at = now + record.pause_s
        return due

    def hurry(self, replica_id: str, now: float) -> None:
        """Probe an ejected replica at the next occasion: it gave a sign of life."""
        if record := self._records.get(replica_id):
            record.probe_at = now

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
