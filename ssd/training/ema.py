"""The exponential moving average of a model over its training steps, which is often the better detector."""

import copy

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ssd.running_statistics import join_statistics, running_statistics


class Average:
    """Of a model's parameters and batch norm's statistics, in a model of its own that is never trained.

    After step t (from 0) it keeps min(decay, (1 + t) / (10 + t)) of itself, as TensorFlow's ExponentialMovingAverage
    with num_updates does: a fixed decay near 1 would remember the first weights for the whole of a short run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """decay: in [0, 1)."""
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """Averages this model from now on, whose shapes the average has."""
        self.statistics = join_statistics(self.model)
        self._own, self._models = _averaged(self.model), _averaged(model)
        self._counted = list(zip(_counters(self.model), _counters(model), strict=True))

    def update(self, step: int) -> None:
        """Takes in the model as it is after this step (from 0). The host waits for nothing."""
        get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))(self._own, self._models, None)
        for own, models in self._counted:
            own.copy_(models)


def _counters(model: nn.Module) -> list[Tensor]:
    """What a model counts by itself, such as the images that YOLOv2 has seen; batch norm's count of batches is of no
    use here."""
    counters = (value for name, value in model.named_buffers() if not name.endswith("num_batches_tracked"))
    return [value for value in counters if not value.is_floating_point()]


def _averaged(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *(getattr(module, name) for module, name in running_statistics(model))]
