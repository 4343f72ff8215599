"""Everything that owns a sequence: engine loop, scheduler, cache, gate, plan, transports, combine, sampling. No Ray."""
