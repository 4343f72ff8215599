"""What runs where expert weights lie: an expert replica, which holds some experts of every MoE layer and serves them.

A dispatch's way through it:

    1. stream       reads it from its router's stream
    2. inbound      checks it: shape, dtype, layer, experts, counts
    3. batcher      computes it at once, or merges it with what else waits for its layer
    4. merge        joins dispatches into one batch, splits the outputs
    5. weights      the resident weights, kernels/ what computes with them
    6. stream       answers: a result or an error

`source`, `reader` and `memory` bring weights in, from files or from another replica (`peer_source` asks for them,
`weights_servicer` hands them out, `weight_wire` is what both agree on); `startup` says how long a start took where.
`replica` says what is held and how busy it is, `servicer` puts RPCs on top, `server` owns the ports; `__main__` runs
one replica as a bare process. No Ray here, and nothing of a sequence: any two replicas answer alike.
"""
