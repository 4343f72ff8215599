"""Messages of herd.expert."""
