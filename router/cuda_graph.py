"""Recording what a step launches, to start it as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")


class Recorder(Generic[Result]):
    """Records functions that launch work on one device and read nothing back.

    What they read must lie at the same place at every replay; what they return lies at the same place after each. They
    share one piece of memory for what they compute with, so they are to be replayed one after the other, and what one
    returned lasts until another is replayed, unless it is held while that is recorded.

    Where there is no GPU nothing is recorded: a function is called anew every time, and returns new tensors.
    """

    def __init__(self, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if is_gpu else None
        # One for all: libraries keep a workspace for every stream that they are used in.
        self._stream = torch.cuda.Stream(device) if is_gpu else None

    @torch.inference_mode()
    def record(self, launch: Callable[[], Result]) -> Callable[[], Result]:
        """Return what does the same by a replay. Cost: runs it once, and compiles what was not compiled yet."""
        if self._pool is None:
            return launch
        # Once without being recorded: kernels are compiled, and libraries take the memory they want.
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            launch()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, those that move pages, may go on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = launch()

        def replay() -> Result:
            graph.replay()
            return result

        return replay
