"""The pure-PyTorch data path."""
