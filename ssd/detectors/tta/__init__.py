"""Test-time augmentation: several passes over an image, whose findings become one; and softer kinds of suppression."""
