"""Messages of herd.tensor."""
