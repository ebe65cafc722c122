"""What pruning costs, tensor by tensor."""
