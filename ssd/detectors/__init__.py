"""The detectors: a folder each."""
