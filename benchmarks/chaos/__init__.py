"""What `chaos.py` is made of: an application, a steady load, faults, and the comparison with a fault-free run."""
