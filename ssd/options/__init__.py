"""What the options of the command line are made of, and how they become the settings of a run."""
