"""The training loop and all that it stands on: state, step, schedule of evaluations, resume."""
