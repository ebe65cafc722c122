"""darknet's own: its cfg language, its layers, its files of weights."""
