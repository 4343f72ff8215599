"""One step of everything that holds sequences: prompts are computed beside those that generate, waits are counted.

A prompt's time to its first token is what the fluid makes it wait, its own computing, and what chance adds: each
request goes to the less busy of two units, as in Herd, and finds k or more there with probability use^(2^k - 1).

Source: Mitzenmacher, "The power of two choices in randomized load balancing", IEEE TPDS 12(10), 2001, for many units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from benchmarks.simulation.hardware import kv_bytes
from benchmarks.simulation.roofline import STRETCH, Unit, most_sequences
from benchmarks.simulation.sequences import Sequences, Served

_MOST_USE = 0.98
_MOST_FOUND = 10
_DAMPING = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Slo:
    """What clients were promised."""

    ttft_s: float = 2.0
    """Seconds to the first token."""
    token_s: float = 0.1
    """Mean seconds between tokens of a request."""
    share: float = 0.99
    """Part of the requests that must keep both."""


@dataclass(slots=True)
class Misses:
    """Requests that missed what was promised; one that misses both counts twice."""

    ttft: float = 0.0
    token: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Activity:
    """What a step was like."""

    batch: float = 0.0
    """Sequences that generate, per unit."""
    steps_per_s: float = 0.0
    """Decoding steps of all units."""
    prompt_tokens_per_s: float = 0.0
    """Prompt tokens computed by all units."""
    arriving_tokens_per_s: float = 0.0
    """Prompt tokens that came."""
    prefill_tokens_per_s: float = 0.0
    """Prompt tokens that a unit has time for."""
    kv_share: float = 0.0
    """Part of the KV memory in use."""
    slot_share: float = 0.0
    """Sequences over those there is room for."""
    ttft_s: float = 0.0
    """Mean time to the first token; 0: there was none."""


@dataclass(slots=True)
class Serving:
    """Units of one kind and their sequences."""

    unit: Unit
    slo: Slo
    sequences: Sequences = field(default_factory=Sequences)
    misses: Misses = field(default_factory=Misses)
    _room: dict[int, float] = field(default_factory=dict)
    _at_once: float = 0.0
    """Sequences that generate at once by rate times duration: answers shorter than a step are gone when it ends."""
    _duration_s: float = 0.0
    """How long an answer took in the last step that had any."""

    @property
    def at_once(self) -> float:
        """Return how many sequences generate at once."""
        return max(self.sequences.num_generating, self._at_once)

    def step(
        self, units: int, now: float, step_s: float, *, arriving_tokens: float, expert_use: float, throttle: float
    ) -> Activity:
        """Advance all sequences.

        Args:
            units: those that work.
            now: beginning of the step.
            step_s: its length.
            arriving_tokens: prompt tokens that came with it, already among the sequences.
            expert_use: of the busiest expert replica; 0 to 1.
            throttle: part of the tokens that experts can keep up with; 0: an expert has no replica.
        """
        sequences, unit = self.sequences, self.unit
        generating, arriving = sequences.num_generating, arriving_tokens / step_s
        waiting = sequences.waiting_tokens
        if not units or not throttle:
            sequences.generate(0.0, now, step_s)
            return Activity(arriving_tokens_per_s=arriving, slot_share=1.0 if units else 0.0)
        at_once = self.at_once
        batch = at_once / units
        prompt = waiting / sequences.num_waiting if waiting else sequences.context
        context = sequences.context or prompt
        room_each = self._room_each(max(context, prompt, 1.0))
        step_alone_s = unit.decode_step_s(max(batch, 1.0), context, expert_use)
        # A unit without sequences computes prompts all the time, another only as far as it may stretch its steps.
        most_share = 1 - min(batch, 1.0) / STRETCH
        token_s = unit.prefill_s(prompt, expert_use) / (most_share * throttle)
        able = units * step_s / token_s
        use = min(waiting / able, 1.0)
        turns = max(step_s / self._duration_s, 1.0) if self._duration_s else 1.0
        served = sequences.prefill(able, max(units * room_each * turns - generating, 0.0), now, step_s)
        ttft_s = self._count_first_tokens(served, token_s, step_alone_s, use)
        computed = sum(each.cohort.count * each.cohort.context for each in served)
        share = min(most_share * computed / able, 1 - 1 / STRETCH)
        pace_s = step_alone_s / ((1 - share) * throttle)
        self._note_answers(served, pace_s, step_s)
        for cohort, mean_s in sequences.generate(step_s / pace_s, now, step_s):
            self.misses.token += cohort.count * (mean_s > self.slo.token_s)
        return Activity(
            batch=max(batch, 1.0),
            steps_per_s=units * min(batch, 1.0) / pace_s,
            prompt_tokens_per_s=computed / step_s,
            arriving_tokens_per_s=arriving,
            prefill_tokens_per_s=able / step_s / units,
            kv_share=min(at_once * kv_bytes(context) / (units * unit.kv_bytes), 1.0),
            slot_share=(at_once + sequences.num_waiting) / (units * room_each),
            ttft_s=ttft_s,
        )

    def _note_answers(self, served: list[Served], pace_s: float, step_s: float) -> None:
        """Learn how many answers there are at once, and how long one takes."""
        count = sum(each.cohort.count for each in served)
        tokens = sum(each.cohort.count * each.cohort.remaining for each in served)
        # Damped: more at once make each slower, and so still more.
        self._at_once += _DAMPING * (tokens * pace_s / step_s - self._at_once)
        if count:
            self._duration_s = tokens / count * pace_s

    def _room_each(self, context: float) -> float:
        """Return the sequences a unit takes; contexts are rounded, for this is asked every step."""
        key = int(math.log2(context) * 16)
        if key not in self._room:
            self._room[key] = max(most_sequences(self.unit, 2 ** ((key + 1) / 16), self.slo.token_s), 1.0)
        return self._room[key]

    def _count_first_tokens(self, served: list[Served], token_s: float, step_s: float, use: float) -> float:
        """Count those whose first token is late; return the mean time to the first token."""
        use = min(use, _MOST_USE)
        found = sum(_finds(use, count) for count in range(1, _MOST_FOUND))
        total = total_s = 0.0
        for each in served:
            if not each.is_first:
                continue
            own_s = each.cohort.context * token_s
            slack_s = self.slo.ttft_s - each.wait_s - own_s - step_s
            late = 1.0 if slack_s <= 0 else _finds(use, slack_s / own_s)
            self.misses.ttft += each.cohort.count * late
            total += each.cohort.count
            total_s += each.cohort.count * (each.wait_s + own_s * (1 + found) + step_s)
        return total_s / total if total else 0.0


def _finds(use: float, count: float) -> float:
    """Return the probability that the less busy of two units has at least `count` prompts to compute."""
    return float(use ** (2.0 ** min(count, 30.0) - 1)) if count > 0 else 1.0
