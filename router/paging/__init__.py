"""Which page of the cache holds which tokens: free pages, tables, shared prefixes. Pure integers: no tensors here."""
