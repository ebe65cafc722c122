"""Checkpoints: what they hold, weights of other programs, and which of a run's stay."""
