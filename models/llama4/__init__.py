"""The decoder's stateful half: embeddings, attention, norms, dense and shared MLPs, the gate's weights, the LM head.

Routed experts are not here: they live in experts/, behind a transport. Dense Llama 1 to 3 models are the same
decoder without gates.
"""
