"""What a student is held to: each method by itself, which knows tensors and no training."""
