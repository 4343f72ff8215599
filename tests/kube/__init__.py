"""A Kubernetes API server for tests, and objects to put into it."""
