"""The demo data set: drawn scenes with their annotations."""
