"""RetinaNet as detectron2 defines it."""
