"""Detectron's R-CNNs: Faster, Mask and Keypoint R-CNN, and the region proposal network alone, by its own rules."""
