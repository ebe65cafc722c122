"""From a model and a split to detections, metrics and analysis."""
