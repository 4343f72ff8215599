"""Trains the demo model in models/demo on text every Python carries: `python -m examples.train_demo --help`."""
