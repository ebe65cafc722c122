"""The detectors of torchvision.models.detection: RetinaNet, FCOS, Faster, Mask and Keypoint R-CNN."""
