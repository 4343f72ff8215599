"""How kernels are cut, by the form of the weights and the tokens that one of them meets at most.

Few tokens: the weights' bytes are all that counts. So many programs that every part of the card reads, each with some
steps of weights on their way; all tokens in one tile, so that nothing is read twice; and no more warps than lie along
the outputs, because warps beside each other along the tokens would each make numbers of the same codes. Many tokens:
tensor cores count; large tiles, each number read from shared memory as seldom as registers allow.

What is here was chosen by counting bytes, registers, shared memory and instructions for an H100 (132 processors with
227 KiB each), and was not tuned on a card.
"""

from __future__ import annotations

from models.gpu.product import Launch
from models.gpu.weight import Form


def gate_up_launch(form: Form, most_tokens: int) -> Launch:
    """Return how to cut the product with gate and up, which holds a tile of both.

    Args:
        form: of the weights.
        most_tokens: that one weight meets.
    """
    if most_tokens <= 16:
        return Launch(tokens=16, outputs=32, warps=4 if form == "plain" else 2, stages=6 if form == "int4" else 4)
    if most_tokens <= 32:
        return Launch(tokens=32, outputs=32, warps=4 if form == "plain" else 2, stages=4)
    if most_tokens <= 64 or form == "int4":
        return Launch(tokens=64, outputs=64, stages=4 if form == "int4" else 3)
    return Launch(tokens=128, outputs=64, inputs=64, warps=8)


def down_launch(form: Form, most_tokens: int) -> Launch:
    """Return how to cut the product with one weight. Arguments as for `gate_up_launch`."""
    if most_tokens <= 16:
        return Launch(tokens=16, outputs=32, warps=4 if form == "plain" else 2, stages=10 if form == "int4" else 6)
    if most_tokens <= 32:
        return Launch(tokens=32, outputs=32, warps=4 if form == "plain" else 2)
    if most_tokens <= 64:
        return Launch(tokens=64, outputs=64)
    return Launch(tokens=128, outputs=128, inputs=64, warps=8)


def decode_tile(num_choices: int, num_experts: int) -> int:
    """Return the tokens of a tile where so many choices fall on so many experts, nobody on the host knows how.

    Large enough that hardly an expert's tokens take two tiles, and its weights two readings; no larger, because what is
    not there is multiplied, too.
    """
    expected = num_choices / num_experts
    return 16 if expected <= 6 else 32 if expected <= 16 else 64
