"""Messages of herd.inference."""
