"""Random numbers that depend on the seed and the position alone."""

from __future__ import annotations

from hashlib import blake2b

NUM_SEEDS = 2**64


def uniform(seed: int, position: int) -> float:
    """Return the random number in [0, 1) that chooses the token at a position.

    A hash instead of a generator with a state: nothing that happened before, no neighbour in the batch, no machine
    and no version of torch changes it, so another replica that takes over a sequence chooses the same tokens.

    Args:
        seed: in [0, 2**64).
        position: of the token to choose, counted from the first token of the prompt; in [0, 2**64).
    """
    return (_hash(seed, position, b"position") >> 11) * 2.0**-53


def choice_seed(seed: int, choice: int) -> int:
    """Return the seed of one of several answers to a request; the first keeps the request's own.

    Args:
        seed: of the request, in [0, 2**64).
        choice: 0-based number of the answer.
    """
    return seed if choice == 0 else _hash(seed, choice, b"choice")


def _hash(seed: int, counter: int, purpose: bytes) -> int:
    """Return 64 bits; `purpose` keeps seeds of choices apart from numbers of positions."""
    words = seed.to_bytes(8, "little") + counter.to_bytes(8, "little")
    return int.from_bytes(blake2b(words, digest_size=8, person=purpose).digest(), "little")
