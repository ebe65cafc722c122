"""Models side by side: what they find, how large they are, and how fast they run, measured in turns."""
