"""From boxes that a model scored to detections: what all detectors share of it."""
