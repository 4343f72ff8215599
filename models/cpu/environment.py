"""Settings that torch and its OpenMP read once, when they are loaded: for processes that compute on a CPU.

os.environ.update(CPU_ENVIRONMENT | os.environ)  # before torch is imported: what the user has set stays
"""

CPU_ENVIRONMENT = {
    # Threads that wait sleep: routers and experts share the cores of a machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Weights in pages of 2 MiB: two cores of an AMD EPYC (Zen 5) read 48 instead of 38 GB/s.
    "THP_MEM_ALLOC_ENABLE": "1",
}
