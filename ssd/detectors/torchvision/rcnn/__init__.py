"""Detectors in two stages: proposals, and a second look at them."""
