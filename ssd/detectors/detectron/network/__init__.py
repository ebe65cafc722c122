"""The layers of Detectron's R-CNNs: torchvision's, put together as Detectron has them."""
