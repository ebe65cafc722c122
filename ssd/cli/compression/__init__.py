"""The commands that make models smaller, and say what came of it."""
