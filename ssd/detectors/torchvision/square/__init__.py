"""The detectors of torchvision.models.detection that see squares: SSD300 on a VGG16, SSDLite320 on a MobileNet."""
