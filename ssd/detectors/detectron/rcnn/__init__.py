"""What Detectron's R-CNNs do with boxes: anchors, proposals, samples, losses."""
