"""The 80 categories of COCO."""


def coco_categories() -> list[tuple[int, str]]:
    """The (id, name) of COCO's 80 categories, in the order of its annotation files."""
    from torchvision.models.detection import SSD300_VGG16_Weights

    # A list by id; ids that COCO 2017 does not use are N/A.
    names = SSD300_VGG16_Weights.COCO_V1.meta["categories"]
    return [(id, name) for id, name in enumerate(names) if name not in ("__background__", "N/A")]
