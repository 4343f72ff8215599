"""llama.cpp as a worker, through the functions that llama-cpp-python binds.

One context holds all sequences. A prompt's last position and every new token ask for logits; each `llama_decode` gets
the next token of all sequences at once, as llama.cpp's own server and its `batched` example do.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np
import worker

Position = tuple[int, int, int, bool]
"""(token, position, sequence, whether its logits are wanted)."""


class LlamaCppEngine:
    """A model and a context of llama.cpp.

    Args:
        options: the command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.settings: dict[str, Any] = {
            "gguf": os.path.basename(options.gguf),
            "threads": options.threads,
            "n_batch": options.batch,
            "n_ubatch": options.ubatch,
            "n_seq_max": options.seqs,
            "context of one sequence": options.context,
            "flash attention": options.flash,
            "system": llama_cpp.llama_print_system_info().decode(),
        }
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        # Read into memory of its own, so that llama.cpp may repack weights for this processor.
        model_params.use_mmap = False
        self._model = llama_cpp.llama_model_load_from_file(options.gguf.encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {options.gguf}: what it said is above")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = options.context * options.seqs
        params.n_batch, params.n_ubatch, params.n_seq_max = options.batch, options.ubatch, options.seqs
        params.n_threads = params.n_threads_batch = options.threads
        params.flash_attn_type = int(options.flash)
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context: what it said is above")
        self._num_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch_size = options.batch
        self._batch = llama_cpp.llama_batch_init(options.batch, 0, 1)

    def generate(self, prompts: list[list[int]], max_tokens: int, emit: Callable[[int, int], None]) -> None:
        """See worker.Engine."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        step: list[Position] = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for number in range(max_tokens):
            chosen: list[tuple[int, int]] = []
            for first in range(0, len(step), self._batch_size):
                for sequence, token in self._decode(step[first : first + self._batch_size]):
                    emit(sequence, token)
                    chosen.append((sequence, token))
            step = [(token, len(prompts[sequence]) + number, sequence, True) for sequence, token in chosen]

    def _decode(self, part: list[Position]) -> list[tuple[int, int]]:
        """Run some positions; return the likeliest next token of each sequence whose logits were wanted."""
        batch = self._batch
        batch.n_tokens = len(part)
        for index, (token, position, sequence, wanted) in enumerate(part):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"expected llama_decode to return 0, found {code}")
        return [(sequence, self._likeliest(index)) for index, (_, _, sequence, wanted) in enumerate(part) if wanted]

    def _likeliest(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self._num_vocab,)).argmax())

    def process_names(self) -> dict[int, str]:
        """See worker.Engine."""
        return {os.getpid(): "llama.cpp"}


def main() -> None:
    """Answer on stdin and stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument("--seqs", type=int, default=32)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--flash", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    worker.run(lambda: LlamaCppEngine(options), ["llama-cpp-python"])


if __name__ == "__main__":
    main()
