"""Messages of herd.context."""
