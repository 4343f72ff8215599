"""The gRPC API: messages to requests and back, health, the server."""
