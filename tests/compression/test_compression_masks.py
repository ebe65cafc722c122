"""Masks of a schedule: which weights are zero, when, and what ranks them."""

from typing import Any

import pytest
import torch
from schedules import schedule_of
from test_compression import HALF, STEPS_PER_EPOCH, new_training, take_steps
from torch import Tensor, nn

from ssd.batch import MatchedBatch


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"clip_norm": 0.1}, {"accumulate": 2}, {"ema": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.0},
        {"fp16": True},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)  # fmt: skip
def test_masked_weights_are_exactly_zero_after_every_step(settings: dict[str, Any]) -> None:
    """Also in epochs in which no policy acts, where momentum would bring them back."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if "fp16" in settings else None
    training, companion = new_training(HALF, scaler=scaler, **settings)
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    zeros: dict[str, Tensor] = {}

    def check(step: int) -> None:
        for model in {training.model, training.judged_model}:
            for name, count in (("second.weight", 32), ("last.weight", 4)):
                is_zero = model.get_parameter(name) == 0
                assert int(is_zero.sum()) == count
                assert torch.equal(is_zero, zeros.setdefault(name, is_zero))

    take_steps(training, 0, 4 * STEPS_PER_EPOCH, check)
    assert all(not torch.equal(p, before[name]) for name, p in training.model.named_parameters())


def test_momentum_alone_would_revive_a_masked_weight() -> None:
    """Of w (1, .5), rate .1, momentum .9, gradients (1, 1), (1, 0), mask (1, 0), torch's SGD makes (.71, -.09)."""
    weight = nn.Parameter(torch.tensor([1.0, 0.5]))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    mask = torch.tensor([1.0, 0.0])
    seen = []
    for gradient in ([1.0, 1.0], [1.0, 0.0]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        seen.append(weight.detach().clone())
        weight.data.mul_(mask)
    assert torch.allclose(seen[0], torch.tensor([0.9, 0.4])) and torch.allclose(seen[1], torch.tensor([0.71, -0.09]))
    assert weight.tolist() == pytest.approx([0.71, 0.0]) and weight[1] == 0


def test_a_step_that_is_left_out_keeps_the_masks() -> None:
    training, companion = new_training(HALF)
    take_steps(training, 0, 1)
    companion.before_step(1, 0.1)
    bad = MatchedBatch(torch.full((4, 3), torch.nan), torch.zeros(0), torch.zeros(0), torch.zeros(4))
    training.train_step(training.model, bad, 0.1)
    companion.after_step(1)
    assert int(training.skipped_steps) == 1 and int((training.model.get_parameter("second.weight") == 0).sum()) == 32


def test_agp_follows_its_epochs() -> None:
    text = schedule_of(
        "AutomatedGradualPruner", "initial_sparsity: 0.1", "final_sparsity: 0.5", "weights: [module.second.weight]",
        epochs=(0, 3, 1),
    )  # fmt: skip
    training, _ = new_training(text)
    zeros = []
    take_steps(
        training, 0, 12, lambda step: zeros.append(int((training.model.get_parameter("second.weight") == 0).sum()))
    )
    # .1, .45, .5 of 64; nothing changes within an epoch, and the last level stays.
    assert zeros == [6] * 3 + [28] * 3 + [32] * 6


def test_masks_may_be_set_within_epochs() -> None:
    given = ("weights: [second.weight]", "group_type: Filters", "desired_sparsity: 0.5")
    text = schedule_of("RandomRankedFilterPruner", *given, args="{mini_batch_pruning_frequency: 2}")
    training, companion = new_training(text)
    masks = []
    take_steps(training, 0, 6, lambda step: masks.append(companion.masks["second.weight"].clone()))
    # New ones in steps 0, 2, 3 (an epoch's first) and 4.
    assert [torch.equal(a, b) for a, b in zip(masks, masks[1:], strict=False)] == [True, False, False, False, True]


def test_a_first_minibatch_may_be_skipped() -> None:
    text = HALF.replace("instance_name: p", "instance_name: p, args: {skip_first_minibatch: true}")
    training, companion = new_training(text)
    seen = []
    take_steps(training, 0, 3, lambda step: seen.append(sorted(companion.masks)))
    assert seen == [[], ["last.weight", "second.weight"], ["last.weight", "second.weight"]]


def test_dense_weights_come_back_where_a_policy_keeps_them() -> None:
    """Between steps the model is masked, the optimiser has the dense weights, and at the policy's end they return."""
    text = schedule_of(
        "SparsityLevelParameterPruner", "levels: {second.weight: 0.5}",
        args="{mask_on_forward_only: true, use_double_copies: true}", epochs=[0, 1],
    )  # fmt: skip
    training, companion = new_training(text, momentum=0.0, weight_decay=0.0)
    plain, _ = new_training(text, momentum=0.0, weight_decay=0.0)
    weight, start = training.model.get_parameter("second.weight"), plain.model.get_parameter("second.weight")
    seen = []

    def check(step: int) -> None:
        seen.append(int((weight == 0).sum()))
        if step == 0:  # one step of SGD from the dense weights, by the gradient at the masked ones
            moved = start - 0.05 * weight.grad  # type: ignore[operator]
            assert torch.allclose(companion.dense["second.weight"], moved)
            assert torch.equal(weight, companion.dense["second.weight"] * companion.masks["second.weight"])

    take_steps(training, 0, 7, check)
    assert seen == [32] * 5 + [0] * 2 and companion.masks == companion.dense == {}


def test_keep_mask_ends_with_the_mask() -> None:
    text = schedule_of(
        "SparsityLevelParameterPruner", "levels: {second.weight: 0.5}",
        args="{mask_on_forward_only: true, use_double_copies: true, keep_mask: true}", epochs=[0],
    )  # fmt: skip
    training, companion = new_training(text)
    take_steps(training, 0, 6)
    assert int((training.model.get_parameter("second.weight") == 0).sum()) == 32 and companion.dense == {}


def test_masked_gradients_move_nothing_that_is_masked() -> None:
    text = schedule_of(
        "SparsityLevelParameterPruner", "levels: {second.weight: 0.5}",
        args="{mask_on_forward_only: true, use_double_copies: true, mask_gradients: true}", epochs=[0],
    )  # fmt: skip
    training, companion = new_training(text, weight_decay=0.0)
    start = training.model.get_parameter("second.weight").detach().clone()
    take_steps(training, 0, 2)
    masked = companion.masks["second.weight"] == 0
    assert torch.equal(companion.dense["second.weight"][masked], start[masked])
    assert not torch.equal(companion.dense["second.weight"][~masked], start[~masked])


def test_dense_sparse_dense() -> None:
    """A second policy that discards its masks at once lets the weights grow again."""
    text = HALF + "  - {pruner: {instance_name: p, args: {discard_masks_at_minibatch_end: true}}, epochs: [1]}\n"
    training, companion = new_training(text)
    zeros = []
    take_steps(
        training, 0, 6, lambda step: zeros.append(int((training.model.get_parameter("second.weight") == 0).sum()))
    )
    assert zeros[:4] == [32] * 4 and companion.masks == {}
    assert max(zeros[4:]) < 8  # what no gradient reaches stays where it is


def test_batch_norm_may_weigh_the_ranking() -> None:
    """Half of the filters have a small gamma: folded, they rank last, though their weights are the largest."""
    given = ("weights: [first.weight]", "group_type: Filters", "desired_sparsity: 0.5")
    for fold, expected in (("true", [0, 1, 2, 3]), ("false", [4, 5, 6, 7])):
        text = schedule_of("L1RankedStructureParameterPruner", *given, args=f"{{fold_batchnorm: {fold}}}", epochs=[0])
        training, companion = new_training(text)
        with torch.no_grad():
            training.model.get_parameter("first.weight")[:4] = 9
            training.model.get_parameter("norm.weight")[:4] = 1e-3
        companion.before_step(0, 0.1)
        masked = (companion.masks["first.weight"] == 0).flatten(1).all(dim=1)
        assert masked.nonzero().flatten().tolist() == expected
