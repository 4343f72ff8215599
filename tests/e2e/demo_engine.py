"""What the demo model generates in an engine of its own process, without anything of the cluster."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT

WAIT_S = 240


def greedy_tokens(folder: Path, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Return what follows each prompt; blocks while a process computes it."""
    asked = json.dumps({"folder": str(folder), "prompts": list(map(list, prompts)), "max_tokens": max_tokens})
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.demo_engine"],
        input=asked,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    answer: list[list[int]] = json.loads(done.stdout)
    return answer


def main() -> None:
    """Read what is asked from stdin, print what is generated."""
    import torch

    from experts.weights import ExpertWeights
    from models.checkpoint import open_checkpoint
    from models.llama4.decoder import load_decoder
    from router.engine import Engine
    from router.limits import EngineLimits
    from router.request import Ended, GenerationRequest, SamplingParams, TokenChosen
    from router.transport.local import LocalTransport

    asked = json.load(sys.stdin)
    checkpoint = open_checkpoint(Path(asked["folder"]))
    weights = ExpertWeights.load(checkpoint, range(checkpoint.config.num_experts), torch.float32)
    decoder = load_decoder(checkpoint, dtype=torch.float32)
    limits = EngineLimits(context_length=checkpoint.config.max_positions, kv_bytes=200_000_000)
    transport = LocalTransport(weights.run)
    engine = Engine(decoder, transport, limits)
    engine.start()
    answers = []
    for prompt in asked["prompts"]:
        events: queue.Queue = queue.Queue()
        sampling = SamplingParams(temperature=0.0)
        request = GenerationRequest(
            request_id="one", prompt_ids=tuple(prompt), max_tokens=asked["max_tokens"], sampling=sampling
        )
        engine.submit(request, events.put)
        tokens = []
        while not isinstance(event := events.get(timeout=WAIT_S), Ended):
            tokens += [event.token_id] if isinstance(event, TokenChosen) else []
        assert event.reason == "length", event
        answers.append(tokens)
    engine.stop()
    transport.close()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
