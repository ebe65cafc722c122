"""Recipes that several families of detectors share."""
