"""Steps of few tokens on a CPU, in kernels of our own: torch's operators cost more there than what they compute.

kernels.c     the kernels: a product, the experts of a dispatch, an attention layer
library       compiles and loads them
tensors       calls them with tensors
environment   what has to be set before torch is imported
"""
