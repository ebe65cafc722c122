"""Detectors that say something of every anchor or point."""
