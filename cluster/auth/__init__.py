"""API keys: who may call, and how much. Their file, who a key belongs to, and what is left of a quota."""
