"""Filters taken out of a model for good: those that are 0, or those of the lowest rank."""
