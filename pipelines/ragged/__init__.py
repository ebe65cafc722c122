"""Batches of images of their own sizes, for both data paths: the order of samples, their windows, their targets."""
