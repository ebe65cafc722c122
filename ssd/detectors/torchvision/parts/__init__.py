"""What RetinaNet, FCOS and the R-CNNs are put together of."""
