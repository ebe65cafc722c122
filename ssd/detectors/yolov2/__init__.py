"""YOLOv2 as darknet defines it."""
