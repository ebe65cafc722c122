"""Training steps and detection, measured."""
