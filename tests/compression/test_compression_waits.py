"""A schedule beside a training on a GPU that is none: it waits for nothing in the steps between its masks."""

from pathlib import Path

import pytest
import torch
from fake_gpu import GPU, move_to_gpu, pretend, pretended_gpu
from torch import Tensor, nn

from ssd.compression.schedules.distiller_yaml import load_schedule
from ssd.compression.schedules.masks import Compression
from ssd.distributed import Ranks
from ssd.schedule import Warmup

STEPS_PER_EPOCH = 4
POLICY = "  - {{{kind}: {{instance_name: own{args}}}, epochs: [0, 1]}}\n"
ELEMENTS = (
    "    class: AutomatedGradualPruner\n    initial_sparsity: 0.1\n    final_sparsity: 0.5\n    weights: [0.weight]\n"
)
FILTERS = "    class: {name}\n    desired_sparsity: 0.5\n    group_type: Filters\n    weights: [0.weight]\n"
GRADUAL = "  - {{pruner: {{instance_name: own{args}}}, starting_epoch: 0, ending_epoch: 3, frequency: 1}}\n"


def pruner(text: str, policy: str = POLICY, args: str = "") -> str:
    return f"pruners:\n  own:\n{text}policies:\n" + policy.format(kind="pruner", args=args and f", args: {{{args}}}")


def regularizer(text: str) -> str:
    return f"regularizers:\n  own: {{{text}}}\npolicies:\n" + POLICY.format(kind="regularizer", args="")


@pytest.mark.parametrize(
    "text",
    [
        pruner(ELEMENTS, GRADUAL),
        pruner(ELEMENTS, GRADUAL, "mask_on_forward_only: true"),
        pruner(ELEMENTS, GRADUAL, "use_double_copies: true"),
        pruner(FILTERS.format(name="L1RankedStructureParameterPruner"), args="mask_batchnorm: true"),
        pruner(FILTERS.format(name="ActivationAPoZRankedFilterPruner")),
        regularizer("class: L1Regularizer, reg_regims: {0.weight: 1e-4}, threshold_criteria: Mean_Abs"),
        regularizer(
            "class: GroupLassoRegularizer, reg_regims: {0.weight: [1e-4, Filters]}, threshold_criteria: Mean_Abs"
        ),
    ],
    ids=["elements", "forward only", "double copies", "filters", "activations", "L1", "groups"],
)
def test_steps_between_masks_wait_for_nothing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regularizer with a threshold zeroes in each step, what rank 0 says."""
    world_size = 2 if "regularizers" in text else 1
    sent: list[Tensor] = []
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, src: sent.append(tensor))
    file = tmp_path / "schedule.yaml"
    file.write_text(text)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    images = torch.randn(2, 3, 8, 8)
    with torch.backends.cudnn.flags(enabled=False), pretended_gpu() as waits:
        move_to_gpu(model)
        companion = Compression(
            load_schedule(file), model, None, Ranks(0, 0, world_size, GPU), steps_per_epoch=STEPS_PER_EPOCH,
            num_epochs=6, base_lr=0.1, warmup=Warmup(0, 0, 1), seed=0,
        )  # fmt: skip
        losses = companion.losses_of(lambda forward, batch: {"plain": forward(batch).square().mean()})
        for step in range(2 * STEPS_PER_EPOCH):
            if step % STEPS_PER_EPOCH == 1:  # masks were set at the first step of the epoch
                waits.found.clear()
            companion.before_step(step, 0.1)
            losses(model, pretend(images))
            companion.before_optimizer()
            companion.after_step(step)
            if step % STEPS_PER_EPOCH:
                assert waits.found == [], step
    assert (len(sent) > 0) == (world_size == 2)
