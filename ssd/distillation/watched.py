"""What some of a model's modules give while it runs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ssd.detectors.distillation import Seen


class Recorder:
    """Listens to modules, by name, between `begin` and `end`: not to an evaluation, which calls the same ones.

    copied: of the names, those of which a later layer overwrites what they give.
    """

    def __init__(self, watched: Mapping[str, nn.Module], copied: frozenset[str] = frozenset()) -> None:
        self._seen: Seen | None = None
        self._hooks = [
            module.register_forward_hook(partial(self._record, name, name in copied))
            for name, module in watched.items()
        ]

    def _record(self, name: str, copies: bool, module: nn.Module, arguments: Any, output: Any) -> None:
        if self._seen is not None:
            self._seen.setdefault(name, []).append(output.clone() if copies else output)

    def begin(self) -> None:
        self._seen = {}

    def end(self) -> Seen:
        seen, self._seen = self._seen, None
        assert seen is not None
        return seen

    def unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()


class Watched(nn.Module):
    """A model whose forward pass gives, beside its result, what was recorded."""

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.model = model
        self._recorder = recorder

    def forward(self, *arguments: Any) -> tuple[Any, Seen]:
        self._recorder.begin()
        output = self.model(*arguments)
        return output, self._recorder.end()


class Distilling(nn.Module):
    """The student with what is trained beside it: the module that is put over ranks, so that all gradients go through
    their exchange.

    watched: a `Watched` student, perhaps compiled. adapters: by method; inputs: what each takes of what was seen.
    """

    def __init__(
        self, watched: nn.Module, adapters: nn.ModuleDict, inputs: Mapping[str, Callable[[Seen], Any]]
    ) -> None:
        super().__init__()
        self.watched = watched
        self.adapters = adapters
        self._inputs = dict(inputs)

    def forward(self, *arguments: Any) -> tuple[Any, Seen, dict[str, dict[str, Tensor]]]:
        """The student's result, what was seen, and what each method's adapter makes of it."""
        output, seen = self.watched(*arguments)
        return output, seen, {name: adapter(self._inputs[name](seen)) for name, adapter in self.adapters.items()}
