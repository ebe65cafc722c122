"""What the classes of another program's weights are called, which most of them do not say."""

from pathlib import Path
from typing import Any

import detectron_files as made
import pytest

from ssd.checkpoints import conversion
from ssd.coco_categories import coco_categories
from ssd.detectors.detectron.config.shipped import configurations
from ssd.errors import InputError


def content_of(num_classes: int) -> dict[str, Any]:
    """Of a file of Detectron's; one of the classes is the background."""
    values = {**configurations()["e2e_mask_rcnn_R-50-FPN_1x"].given, **made.SMALL}
    return {"blobs": made.arrays(made.fpn_mask((3, 4, 6, 3), num_classes)), "cfg": made.saved_text(values)}


def test_coco_names_beside_a_file_leave_cocos_ids(tmp_path: Path) -> None:
    file = made.write(tmp_path / "model.pkl", content_of(81))
    (tmp_path / "model.names").write_text("".join(f"{name}\n" for _, name in coco_categories()))
    assert conversion.load(file)["categories"] == coco_categories()


def test_the_classes_of_another_programs_file_have_the_names_beside_it(tmp_path: Path) -> None:
    file = made.write(tmp_path / "model_final.pkl", content_of(4))
    assert conversion.load(file)["categories"] == [(1, "class 1"), (2, "class 2"), (3, "class 3")]
    names = tmp_path / "model_final.names"
    names.write_bytes("\ufeffRBC\r\n\r\nPlättchen \r\nWBC".encode())
    assert conversion.load(file)["categories"] == [(1, "RBC"), (2, "Plättchen"), (3, "WBC")]
    # Ours has names of its own.
    conversion.save(tmp_path / "ours.pt", conversion.load(file))
    (tmp_path / "ours.names").write_text("one\ntwo\nthree\n")
    assert conversion.load(tmp_path / "ours.pt")["categories"][0] == (1, "RBC")
    names.write_text("class 1\nclass 2\nclass 3\n")
    assert conversion.load(file)["categories"][0] == (1, "class 1")
    names.write_text("RBC\nWBC\n")
    with pytest.raises(InputError, match=r"model_final.names: has 2 names, model_final.pkl has 3 classes"):
        conversion.load(file)
    names.write_bytes("RBC\nPlättchen\nWBC\n".encode("latin1"))
    with pytest.raises(InputError, match=r"model_final.names: not UTF-8 text"):
        conversion.load(file)
