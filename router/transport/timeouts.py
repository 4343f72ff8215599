"""How long a dispatch may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchTimeouts:
    """How long a dispatch may take."""

    answer_s: float = 20.0
    """Seconds one replica has to answer before its stream is reset and another holder is asked."""
    patience_s: float = 600.0
    """Seconds a layer waits for a holder of an expert, and a dispatch for its answers, resending and restarts of the
    only holder included, before it fails."""
