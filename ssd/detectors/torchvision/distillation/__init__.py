"""What torchvision's detectors show to a teacher or a student."""
