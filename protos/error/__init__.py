"""Messages of herd.error."""
