"""Schedules of pruning in the language of Intel's Distiller, and what they do to a training."""
