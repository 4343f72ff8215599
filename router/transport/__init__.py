"""How a router reaches experts: one interface, in this process (`local`) or over gRPC streams (`grpc`)."""
