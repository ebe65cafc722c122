"""SSD300's view, for tests of data paths."""

from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.table import view_of
from ssd.views import Augmentation, SquareView

VIEW = view_of(SSD300Settings())
assert isinstance(VIEW, SquareView)


def view_with(augmentation: Augmentation) -> SquareView:
    return VIEW._replace(augmentation=augmentation)
