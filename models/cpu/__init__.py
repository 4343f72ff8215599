"""A model's layers on a CPU, in kernels of our own: torch's operators cost more than what they compute in small steps.

kernels.c     the kernels: a product, the experts of a dispatch, an attention layer
library       compiles and loads them
weight        a weight as they read it
tensors       a product and experts, called with tensors
attention     attention layers, called with tensors
threads       how many threads they use
environment   what has to be set before torch is imported
"""
