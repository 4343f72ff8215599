"""Probabilities that are reported: under the model itself, before temperature and penalties.

Letter: W ranked tokens, likeliest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from protos.errors import InternalError
from router.ranking import likeliest, row_blocks, take_rows
from router.request import TokenLogprob


def token_logprobs(
    logits_BV: Tensor, token_ids: Sequence[int], nums_top: Sequence[int | None]
) -> list[TokenLogprob | None]:
    """Report how likely the chosen tokens were.

    Args:
        logits_BV: [B, V] of any float dtype, as the model gave them.
        token_ids: per row, the token chosen.
        nums_top: per row, how many of the likeliest tokens to name, at most V are; None: no report on this row.

    Raises:
        InternalError: the logits of a row on which to report are not finite.

    Cost: one read from the device, none where every row has None.
    """
    wanted = [(row, num_top) for row, num_top in enumerate(nums_top) if num_top is not None]
    answers: list[TokenLogprob | None] = [None] * len(nums_top)
    rows = [row for row, _ in wanted]
    reports = _report(logits_BV, rows, [token_ids[row] for row in rows], [num_top for _, num_top in wanted])
    for row, report in zip(rows, reports, strict=True):
        answers[row] = report
    return answers


def prompt_logprobs(logits_TV: Tensor, prompt_ids: Sequence[int], start: int, num_top: int) -> list[TokenLogprob]:
    """Report how likely a chunk of a prompt made the tokens that follow each of its own.

        prompt   0 1 2 3 4 5 6         logits of t tell of token t + 1;
        chunks  [0 1 2][3 4 5][6]      those of the last token tell of the first to be generated
        reports [0 1 2  3][4 5  6][]

    The answers for a prompt's chunks, one after the other, are one report per token; the first token, which nothing
    foretells, has logprob 0 and no alternatives.

    Args:
        logits_TV: [T, V] of any float dtype, at positions start to start + T - 1.
        prompt_ids: the whole prompt.
        start: position of the first row.
        num_top: how many of the likeliest tokens to name beside each.

    Raises:
        InternalError: logits are not finite.

    Cost: one read from the device.
    """
    next_ids = prompt_ids[start + 1 : start + 1 + logits_TV.shape[0]]
    first = [TokenLogprob(token_id=prompt_ids[0], logprob=0.0)] if start == 0 else []
    return first + _report(logits_TV, range(len(next_ids)), next_ids, [num_top] * len(next_ids))


@torch.inference_mode()
def _report(
    logits_BV: Tensor, rows: Sequence[int], token_ids: Sequence[int], nums_top: Sequence[int]
) -> list[TokenLogprob]:
    """Return one report per entry of `rows`; `token_ids` and `nums_top` go with them."""
    if not rows:
        return []
    width = min(max(nums_top), logits_BV.shape[1])
    ids_B1 = torch.tensor(token_ids, dtype=torch.int64).to(logits_BV.device, non_blocking=True).unsqueeze(1)
    blocks: list[Tensor] = []
    done = 0
    for block in row_blocks(rows, logits_BV):
        block_BV = take_rows(logits_BV, block)
        own_B1 = ids_B1[done : done + len(block)]
        top_BW = likeliest(block_BV, width) if width else own_B1[:, :0]
        listed_BW = torch.cat([own_B1, top_BW], dim=1)
        logprobs_BW = block_BV.log_softmax(dim=-1).gather(1, listed_BW)
        blocks.append(torch.stack([listed_BW.double(), logprobs_BW.double()], dim=1))
        done += len(block)
    return [
        _to_report(row, entry, num_top)
        for row, entry, num_top in zip(rows, torch.cat(blocks).tolist(), nums_top, strict=True)
    ]


def _to_report(row: int, entry: tuple[list[float], list[float]], num_top: int) -> TokenLogprob:
    """Turn (ids, logprobs), the token itself first and then the likeliest, into what the caller sees."""
    ids, logprobs = entry
    if math.isnan(logprobs[0]):
        raise InternalError(
            f"expected finite logits, found none that softmax can use in row {row}; end that sequence, and look for a "
            "damaged checkpoint or an overflow in the model",
            metadata={"rows": str(row)},
        )
    top = zip(ids[1 : 1 + num_top], logprobs[1 : 1 + num_top], strict=True)
    return TokenLogprob(
        token_id=int(ids[0]), logprob=logprobs[0], top=tuple((int(token_id), logprob) for token_id, logprob in top)
    )
