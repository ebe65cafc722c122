"""Which channels of the detectors can be taken out."""
