"""A schedule at work beside a training: it sets masks, holds weights to them, and has state to save.

Between steps every masked weight is exactly what its mask makes of it, in the model and in its moving average. Where a
policy keeps dense weights (mask_on_forward_only, use_double_copies), they lie beside the model until the optimiser
needs them. Rank 0 decides on every mask.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssd.compression.schedules import regularizers
from ssd.compression.schedules.activations import ActivationStatistics, on_cpu
from ssd.compression.schedules.binding import Bound, affines_after, bind, folded, norms_after
from ssd.compression.schedules.distiller_yaml import Schedule
from ssd.compression.schedules.element_masks import Span
from ssd.compression.schedules.lr_rates import rates_of
from ssd.compression.schedules.pruners import NEEDS_ACTIVATIONS, NEEDS_GRADIENTS, Call, Memory, new_masks
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.schedule import Warmup, warmth_at

_Losses = dict[str, Tensor]


class Compression:
    """A `training.state.Companion`. notes: what the user should know of the schedule.

    model, average: what trains, and its moving average if there is one. base_lr, warmup: of the run,
    for the rates of a schedule that has its own.
    """

    name = "compression"

    def __init__(
        self,
        schedule: Schedule,
        model: nn.Module,
        average: nn.Module | None,
        ranks: Ranks,
        *,
        steps_per_epoch: int,
        num_epochs: int,
        base_lr: float,
        warmup: Warmup,
        seed: int,
    ) -> None:
        self.schedule, self.ranks, self.steps_per_epoch, self.warmup = schedule, ranks, steps_per_epoch, warmup
        bound, self.notes = bind(schedule, model, num_epochs)
        self.pruners = [each for each in bound if each.policy.kind == "pruner"]
        self.removers = [each for each in bound if each.policy.kind == "extension"]
        self.remove_filters: Callable[[], None] | None = None
        """Takes out of the model what its removers are to take out, and calls `cut`; where there are any."""
        self.regularizers = [each for each in bound if each.policy.kind == "regularizer"]
        schedulers = [
            (each.policy.instance.class_name, each.arguments, each.policy.epochs)
            for each in bound
            if each.policy.kind == "lr_scheduler"
        ]
        self.rates = rates_of(schedulers, base_lr, num_epochs) if schedulers else None
        self._follow(model, average)
        self.epoch = -1
        """The last that has begun."""
        self.masks: dict[str, Tensor] = {}
        self.dense: dict[str, Tensor] = {}
        """Weights as they are without their masks, of tensors whose policy keeps them."""
        self.holder: dict[str, int] = {}
        """The policy in `pruners` whose flags hold for a tensor: the one that began last."""
        self.gradients: dict[str, Tensor] = {}
        """Of the step before a resumed run's first, for the pruners that rank by them."""
        self.memory = Memory(generator=torch.Generator().manual_seed(seed))

    def _follow(self, model: nn.Module, average: nn.Module | None) -> None:
        self.weights = dict(model.named_parameters())
        self.averages = dict(average.named_parameters()) if average is not None else {}
        self.norms, self.affines = norms_after(model), affines_after(model)
        by_activation = [each for each in self.pruners if each.policy.instance.class_name in NEEDS_ACTIVATIONS]
        tensors = dict.fromkeys(name for each in by_activation for name in each.tensors)
        self.activations = ActivationStatistics(model, tensors, self.norms) if tensors else None

    def cut(self, model: nn.Module, average: nn.Module | None, cut: Callable[[str, Tensor], Tensor]) -> None:
        """Goes on with smaller layers. cut: of all that has a weight's shape. What has been measured of filters is
        forgotten, and measured anew."""
        if self.activations is not None:
            self.activations.stop()
        self._follow(model, average)
        for held in (self.masks, self.dense, self.gradients):
            for name, value in held.items():
                held[name] = torch.empty_like(self.weights[name], dtype=value.dtype).copy_(cut(name, value))
        self.memory.leaders.clear()
        self.memory.activations = {}

    # What the training calls

    @torch.no_grad()
    def before_step(self, step: int, lr: float) -> float:
        """Sets the masks that are due. Returns the rate of this step."""
        epoch, minibatch = divmod(step, self.steps_per_epoch)
        if begins := epoch > self.epoch:
            self.epoch = epoch
            if self.activations is not None:
                self.memory.activations = self.activations.take()
        for index, each in enumerate(self.pruners):
            if epoch in each.policy.epochs and self._is_due(each, step, minibatch, begins=begins):
                self._prune(index, each)
            elif begins and epoch in each.policy.epochs:
                self._take_hold(index, each)
        if begins and any(epoch in each.policy.epochs for each in self.removers) and self.remove_filters is not None:
            self.remove_filters()
        for name, index in self.holder.items():
            args = self.pruners[index].policy.args
            if args.get("use_double_copies") and not args.get("mask_on_forward_only") and name in self.masks:
                if name not in self.dense:
                    self.dense[name] = self.weights[name].detach().clone()
        if self.rates is None:
            return lr
        return self.rates[min(epoch, len(self.rates) - 1)] * warmth_at(step, self.warmup)

    @torch.no_grad()
    def before_optimizer(self, *_: Any) -> None:
        """Gives the optimiser the dense weights of policies with use_double_copies."""
        for name, dense in self.dense.items():
            if self.pruners[self.holder[name]].policy.args.get("use_double_copies"):
                self.weights[name].copy_(dense)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Holds all weights to their masks, ends what is over, and zeroes what regularizers have made small.

        Raises InputError, after the first step already, for a pruner that would never know what its filters say.
        """
        epoch, minibatch = divmod(step, self.steps_per_epoch)
        if self.activations is not None and (silent := self.activations.silent()):
            raise InputError(
                f"{self.schedule.file}: a pruner ranks filters by what they say, and nothing calls the layers of "
                f"{', '.join(silent)}: their weights are used by another one; take them out"
            )
        self._drop_discarded()
        for name, index in self.holder.items():
            if name in self.masks and self.pruners[index].policy.args.get("mask_on_forward_only"):
                self.dense[name] = self.weights[name].detach().clone()
            else:
                self.dense.pop(name, None)
        self.apply(self.masks)
        ends = minibatch == self.steps_per_epoch - 1
        for each in self.regularizers:
            if each.arguments.get("threshold_criteria"):
                is_kept = ends and epoch == each.last_epoch and each.policy.args.get("keep_mask", False)
                if is_kept or epoch in each.policy.epochs:
                    self._zero_small(each, is_kept=is_kept)
        if ends:
            self._end_policies(epoch)

    def losses_of(self, plain: Callable[..., _Losses]) -> Callable[..., _Losses]:
        """The losses with the regularizers' added as "regularization", 0 while none of them acts."""
        if not self.regularizers:
            return plain

        def regularized(forward: Any, batch: Any) -> _Losses:
            return {**plain(forward, batch), "regularization": self.regularization()}

        return regularized

    def hook(self, optimizer: torch.optim.Optimizer) -> None:
        """For the policies that change gradients or weights between the backward pass and the optimiser's step."""
        if any(each.policy.args.get("use_double_copies") for each in self.pruners):
            optimizer.register_step_pre_hook(self.before_optimizer)
        for name in {name for each in self.pruners if each.policy.args.get("mask_gradients") for name in each.tensors}:
            if self.weights[name].requires_grad:
                self.weights[name].register_hook(lambda gradient, name=name: self._masked_gradient(gradient, name))

    # Masks

    def apply(self, names: Iterable[str]) -> None:
        """Multiplies weights and their averages by their masks."""
        held = [name for name in names if name in self.masks]
        for tensors in (self.weights, self.averages):
            if held and tensors:
                torch._foreach_mul_([tensors[name].data for name in held], [self.masks[name] for name in held])

    def _is_due(self, each: Bound, step: int, minibatch: int, *, begins: bool) -> bool:
        args = each.policy.args
        if begins:
            return not (args.get("skip_first_minibatch") and self.epoch == each.policy.epochs[0])
        frequency = args.get("mini_batch_pruning_frequency", 0)
        return bool(
            (frequency and minibatch and step % frequency == 0)
            or (args.get("skip_first_minibatch") and step == each.policy.epochs[0] * self.steps_per_epoch + 1)
        )

    def _take_hold(self, index: int, each: Bound) -> None:
        for name in each.tensors:
            self.holder[name] = index

    def _prune(self, index: int, each: Bound) -> None:
        self._take_hold(index, each)
        policy = each.policy
        weights = {name: self.dense.get(name, self.weights[name].detach()) for name in each.tensors}
        if policy.args.get("fold_batchnorm"):
            weights = {n: folded(w, self.norms[n]) if n in self.norms else w for n, w in weights.items()}
        gradients = {name: self._gradient(name) for name in each.tensors}
        span = Span(self.epoch, policy.start, policy.end, policy.frequency or 1)
        masks = {name: self.masks.get(name) for name in each.tensors}
        call = Call(policy.instance.name, each.arguments, weights, masks, gradients, span, self.memory)
        found = self._as_rank_0(new_masks(policy.instance.class_name, call), each.tensors)
        if policy.args.get("mask_batchnorm"):
            found |= self._masks_of_norms(index, found)
        keeps_dense = policy.args.get("mask_on_forward_only") or policy.args.get("use_double_copies")
        for name, mask in found.items():
            weight = self.weights[name]
            if name in self.dense:
                weight.copy_(self.dense[name])
            elif keeps_dense:
                self.dense[name] = weight.detach().clone()
            # Laid out as the weight, so that multiplying them is one walk through memory.
            self.masks[name] = torch.empty_like(weight, dtype=torch.float32).copy_(mask)
        self.apply(found)

    def _masks_of_norms(self, index: int, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A filter of which nothing is left says nothing: what its norm would make of zeros is masked with it."""
        masks = {}
        for name, mask in found.items():
            for affine in self.affines.get(name, []):
                masks[affine] = (mask != 0).flatten(1).any(dim=1).float()
                self.holder[affine] = index
        return masks

    def _as_rank_0(self, found: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
        """Rank 0's masks, on every rank."""
        if self.ranks.world_size == 1:
            return dict(found)
        is_new = torch.tensor([name in found for name in names], dtype=torch.uint8, device=self.ranks.device)
        dist.broadcast(is_new, src=0)
        masks = {}
        for name, new in zip(names, is_new.tolist(), strict=True):
            if new:
                masks[name] = self._broadcast(found[name] if name in found else torch.ones_like(self.weights[name]))
        return masks

    def _broadcast(self, mask: Tensor) -> Tensor:
        """Rank 0's mask, on every rank."""
        mask = mask.float().contiguous()
        if self.ranks.world_size > 1:
            dist.broadcast(mask, src=0)
        return mask

    def _gradient(self, name: str) -> Tensor | None:
        gradient = self.weights[name].grad
        return gradient if gradient is not None else self.gradients.get(name)

    def _masked_gradient(self, gradient: Tensor, name: str) -> Tensor:
        index = self.holder.get(name)
        if index is None or name not in self.masks or not self.pruners[index].policy.args.get("mask_gradients"):
            return gradient
        return gradient * self.masks[name]

    def _drop_discarded(self) -> None:
        for name, index in self.holder.items():
            each = self.pruners[index]
            if name in self.masks and each.policy.args.get("discard_masks_at_minibatch_end"):
                if not each.policy.args.get("mask_on_forward_only"):
                    self.apply([name])
                del self.masks[name]
                self.dense.pop(name, None)

    def _end_policies(self, epoch: int) -> None:
        """At the end of a policy's last epoch its flags are over. With keep_mask, or where weights were held to the
        mask all the time, the mask stays; else the dense weights come back."""
        for name, index in list(self.holder.items()):
            each = self.pruners[index]
            if epoch < each.last_epoch:
                continue
            del self.holder[name]
            dense = self.dense.pop(name, None)
            if dense is not None and not each.policy.args.get("keep_mask"):
                self.weights[name].copy_(dense)
                del self.masks[name]

    # Regularizers

    def regularization(self) -> Tensor:
        """What the regularizers that act in this epoch add to the loss: float32 ()."""
        total = torch.zeros((), device=self.ranks.device)
        for each in self.regularizers:
            if self.epoch in each.policy.epochs:
                for name in each.tensors:
                    total = total + self._penalty(each, name)
        return total

    def _penalty(self, each: Bound, name: str) -> Tensor:
        value, weight = each.arguments["reg_regims"][name], self.weights[name]
        if each.policy.instance.class_name == "L1Regularizer":
            return regularizers.l1(weight, value)
        if each.policy.instance.class_name == "GroupLassoRegularizer":
            return regularizers.group_lasso(weight, *value)
        return regularizers.group_variance(weight, *value)

    def _zero_small(self, each: Bound, *, is_kept: bool) -> None:
        """Zeroes once what is small; is_kept: for good. The masks of pruners stay as they are."""
        for name in each.tensors:
            value, weight = each.arguments["reg_regims"][name], self.weights[name].detach()
            if each.policy.instance.class_name == "L1Regularizer":
                mask = regularizers.kept_elements(weight, value)
            else:
                threshold, group_type = value
                mask = regularizers.kept_groups(weight, threshold, group_type, each.arguments["threshold_criteria"])
            mask = torch.empty_like(weight, dtype=torch.float32).copy_(self._broadcast(mask))
            weight.mul_(mask)
            if name in self.averages:
                self.averages[name].data.mul_(mask)
            if is_kept:
                self.masks[name] = self.masks[name] * mask if name in self.masks else mask

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on with, as plain numbers and tensors on the CPU."""
        by_gradient = [each for each in self.pruners if each.policy.instance.class_name in NEEDS_GRADIENTS]
        gradients = {name: self._gradient(name) for each in by_gradient for name in each.tensors}
        return {
            "schedule": self.schedule.text,
            "epoch": self.epoch,
            "masks": {name: _packed(mask) for name, mask in self.masks.items()},
            "dense": {name: dense.cpu() for name, dense in self.dense.items()},
            "holder": dict(self.holder),
            "gradients": {name: g.detach().cpu().clone() for name, g in gradients.items() if g is not None},
            "measured": {name: dict(values) for name, values in self.memory.measured.items()},
            "leaders": {name: [sparsity, kept.cpu()] for name, (sparsity, kept) in self.memory.leaders.items()},
            "generator": self.memory.generator.get_state(),
            "activations": on_cpu(self.memory.activations),
            **({"gathered": self.activations.state()} if self.activations is not None else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave; of another schedule, only the masks. The weights have been restored already."""
        device = self.ranks.device
        self.masks = {
            name: torch.empty_like(self.weights[name], dtype=torch.float32).copy_(mask)
            for name, mask in state["masks"].items()
        }
        if state["schedule"] != self.schedule.text:
            return
        self.epoch, self.holder = state["epoch"], dict(state["holder"])
        self.dense = {
            name: torch.empty_like(self.weights[name]).copy_(d).detach() for name, d in state["dense"].items()
        }
        self.gradients = {name: gradient.to(device) for name, gradient in state["gradients"].items()}
        self.memory.measured = {name: dict(values) for name, values in state["measured"].items()}
        self.memory.leaders = {name: (sparsity, kept.to(device)) for name, (sparsity, kept) in state["leaders"].items()}
        self.memory.generator.set_state(state["generator"])
        self.memory.activations = {
            name: {key: value.to(device) for key, value in values.items()}
            for name, values in state.get("activations", {}).items()
        }
        if self.activations is not None and "gathered" in state:
            self.activations.restore(state["gathered"], device)


def _packed(mask: Tensor) -> Tensor:
    """A byte an element where that says all."""
    is_plain = bool(((mask == 0) | (mask == 1)).all())
    return (mask.bool() if is_plain else mask).cpu().contiguous()
