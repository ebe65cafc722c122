"""The command line: each command's flags and what it does."""
