"""transformers as a worker: `generate` on one batch of prompts.

Its Llama 4 multiplies every token by every expert, whichever the gate chose; there is no other implementation of its
experts to choose from (5.23). Attention is torch's scaled dot product. Prompts of one batch have one length.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
import worker
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList


class _EmitEachStep(StoppingCriteria):
    """Tells each token when its step ends; never stops anything."""

    def __init__(self, emit: Callable[[int, int], None]) -> None:
        self._emit = emit

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for prompt, token in enumerate(input_ids[:, -1].tolist()):
            self._emit(prompt, token)
        return torch.zeros(len(input_ids), dtype=torch.bool)


class TransformersEngine:
    """A model of transformers.

    Args:
        options: the command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        self.settings: dict[str, Any] = {
            "dtype": options.dtype,
            "attn_implementation": "sdpa",
            "threads": options.threads,
            "cache": "dynamic",
        }
        self._model = AutoModelForCausalLM.from_pretrained(
            options.checkpoint, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
        ).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_tokens: int, emit: Callable[[int, int], None]) -> None:
        """See worker.Engine."""
        ids = torch.tensor(prompts)
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([_EmitEachStep(emit)]),
        )

    def process_names(self) -> dict[int, str]:
        """See worker.Engine."""
        return {os.getpid(): "transformers"}


def main() -> None:
    """Answer on stdin and stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    worker.run(lambda: TransformersEngine(options), ["transformers", "torch"])


if __name__ == "__main__":
    main()
