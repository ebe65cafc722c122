"""A run's folder: what it writes, what it shows, which folder it is."""
