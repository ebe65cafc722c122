"""Which layers of SSD300 share channels, so that filters can be taken out of it."""
