"""What `herd serve` does around the application: checks, Ray's start and end, progress, signals."""
