"""The DALI data path."""
