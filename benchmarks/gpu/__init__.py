"""What `benchmarks/gpu.py` measures on a card: the card itself, kernels, a whole model, split processes."""
