"""SSD300 object detection: the detector and everything that trains and judges it."""

__version__ = "0.1.0"
