"""Herd and other engines on one model, each in processes of its own: the parts of `benchmarks/peers.py`."""
