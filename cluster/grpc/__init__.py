"""The gRPC API: messages to requests and back, health, status codes, and what Ray Serve's proxy needs corrected."""
