"""Annotation and image files, read strictly and checked."""
