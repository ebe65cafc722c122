"""The strict readers of what COCO files state of objects beside their boxes."""
