"""Messages of herd.weights."""
