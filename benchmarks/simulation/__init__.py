"""A cluster in virtual time that runs Herd's own scaling and placement: the parts of `benchmarks/simulate.py`."""
