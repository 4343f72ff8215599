"""Which GPUs the kernels are for, by number: known to processes without torch."""

LEAST_CAPABILITY = (9, 0)
"""Of the first NVIDIA cards that have the instructions by which rounded weights become bfloat16: Hopper."""
