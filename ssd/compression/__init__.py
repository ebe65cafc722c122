"""Compression in training by schedules in Distiller's YAML language, and what is left of a model after it."""
