"""Recording what a step launches, to start it as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")


class Recorder(Generic[Result]):
    """Records functions that launch work on one device and read nothing back.

    What they read must lie at the same place at every replay; what they return lies at the same place after each. They
    share one piece of memory for what they compute with, so they are to be replayed one after the other.

    Where there is no GPU nothing is recorded: a function is called anew every time, and returns new tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @torch.inference_mode()
    def record(self, launch: Callable[[], Result]) -> Callable[[], Result]:
        """Return what does the same by a replay. Cost: runs it once, and compiles what was not compiled yet."""
        if self._pool is None:
            return launch
        # Once without being recorded: kernels are compiled, and libraries take the memory they want.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            launch()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, those that move pages, may go on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = launch()

        def replay() -> Result:
            graph.replay()
            return result

        return replay
