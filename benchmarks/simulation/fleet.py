"""Replicas of one kind: those that run, start, or finish what they have, and what all of them cost."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Fleet:
    """A number of equal replicas."""

    gpus_each: int
    """GPUs of one replica; 0 for one without."""
    start_s: float
    """From the decision to the first work: process, load, warm-up."""
    drain_s: float = 0.0
    """What a replica that goes still costs, in seconds: it finishes what it has."""
    running: int = 0
    ready_at: list[float] = field(default_factory=list)
    """Of those that start."""
    gpu_seconds: float = 0.0

    @property
    def present(self) -> int:
        """Count those that run or start."""
        return self.running + len(self.ready_at)

    def set_target(self, target: int, now: float) -> None:
        """Begin to start or to stop replicas; those that have not started go first."""
        while self.present > target and self.ready_at:
            self.ready_at.pop()
        if self.present > target:
            gone = self.running - target
            self.gpu_seconds += gone * self.gpus_each * self.drain_s
            self.running = target
        self.ready_at += [now + self.start_s] * (target - self.present)

    def fail(self, count: int, now: float) -> int:
        """Let replicas die, which start again; return how many there were to die."""
        count = min(count, self.running)
        self.running -= count
        self.ready_at += [now + self.start_s] * count
        return count

    def advance(self, now: float, step_s: float) -> int:
        """Let time pass up to `now`, and pay for it; return how many replicas became ready."""
        ready = [at for at in self.ready_at if at <= now]
        self.ready_at = [at for at in self.ready_at if at > now]
        self.running += len(ready)
        self.gpu_seconds += self.present * self.gpus_each * step_s
        return len(ready)
