"""A trained detector in use: images in, detections out; pictures and exported files."""
