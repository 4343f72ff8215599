"""Context shards: processes that hold keys and values of global layers for routers, and attend over them.

servicer     one stream per router: steps in, partial attention out
segments     whose keys and values are where
attention    queries over the first tokens of segments
server       the gRPC server

A shard knows no model weights and no tokens. What it loses, its routers compute again.
"""
