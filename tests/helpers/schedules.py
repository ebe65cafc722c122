"""Schedules that several tests follow."""

# What the published schedules call a layer of torchvision's Mask R-CNN -> the levels that they prune its weights to.
_LAYER1 = [f"layer1.{i}.conv{j}" for i in range(3) for j in (1, 2, 3)] + ["layer1.0.downsample.0"]
_LAYER2 = ["layer2.0.downsample.0", *(f"layer2.{i}.conv{j}" for i in (1, 2, 3) for j in (1, 2, 3))]
_LAYER3 = ["layer3.0.downsample.0", *(f"layer3.{i}.conv{j}" for i in range(6) for j in (1, 2, 3))]
_LAYER4 = [f"layer4.{i}.conv{j}" for i in range(3) for j in (1, 2, 3)][:-1]
_FPN = [f"fpn.{kind}_blocks.{i}" for kind in ("inner", "layer") for i in range(4)]
_MASKS = [*(f"mask_head.mask_fcn{i}" for i in (1, 2, 3, 4)), "mask_predictor.conv5_mask"]
MASK_RCNN = {
    0.75: [f"backbone.body.{name}" for name in (*_LAYER1, *(f"layer2.0.conv{j}" for j in (1, 2, 3)))],
    0.85: [
        *(f"backbone.body.{name}" for name in (*_LAYER2, *_LAYER3, "layer4.2.conv3")),
        *(f"backbone.{name}" for name in _FPN),
        "rpn.head.conv",
        *(f"roi_heads.{name}" for name in _MASKS),
    ],
    0.90: [f"backbone.body.{name}" for name in ("layer4.0.downsample.0", *_LAYER4)],
}
MASK_RCNN_BOX_HEAD = ["roi_heads.box_head.fc6", "roi_heads.box_head.fc7"]


def mask_rcnn_schedule() -> str:
    """Distiller's published schedule for Mask R-CNN, written for torchvision 0.4 under DDP."""
    pruners, policies = [], []
    levels = {**{str(level): (level, names, 1) for level, names in MASK_RCNN.items()}}
    for name, (level, names, frequency) in {**levels, "box": (0.85, MASK_RCNN_BOX_HEAD, 3)}.items():
        weights = ", ".join(f"module.{each}.weight" for each in names)
        pruners.append(
            f"  agp_{name}:\n    class: AutomatedGradualPruner\n    initial_sparsity : 0.01\n"
            f"    final_sparsity: {level}\n    weights: [{weights},]\n"
        )
        policies.append(
            f"  - pruner:\n     instance_name : agp_{name}\n    starting_epoch: 0\n    ending_epoch: 45\n"
            f"    frequency: {frequency}\n"
        )
    return f"version: 1\n\npruners:\n{''.join(pruners)}\npolicies:\n{''.join(policies)}"


def schedule_of(
    class_name: str,
    *arguments: str,
    args: str = "",
    epochs: tuple[int, int, int] | list[int] = (0, 4, 1),
    more: str = "",
) -> str:
    """One pruner with one policy. arguments: "name: value" of the class; args: "{...}" of the policy."""
    when = (
        f"    epochs: {epochs}\n"
        if isinstance(epochs, list)
        else "".join(
            f"    {key}: {n}\n" for key, n in zip(("starting_epoch", "ending_epoch", "frequency"), epochs, strict=True)
        )
    )
    given = "".join(f"    {argument}\n" for argument in arguments)
    policy = f"  - pruner: {{instance_name: p{', args: ' + args if args else ''}}}\n{when}"
    return f"pruners:\n  p:\n    class: {class_name}\n{given}policies:\n{policy}{more}"


# Of all kinds, for two epochs of SSD300-R18.
SSD300_SCHEDULE = """
pruners:
  agp:
    class: AutomatedGradualPruner
    initial_sparsity: 0.1
    final_sparsity: 0.8
    weights: [module.trunk.6.0.conv1.weight, trunk.6.1.conv2.weight]
  filters:
    class: L1RankedStructureParameterPruner_AGP
    initial_sparsity: 0.1
    final_sparsity: 0.5
    group_type: Filters
    group_dependency: Leader
    weights: [extra_blocks.0.0.weight, extra_blocks.1.0.weight]
regularizers:
  l1: {class: L1Regularizer, reg_regims: {extra_blocks.2.3.weight: 1e-4}}
lr_schedulers:
  rate: {class: MultiStepMultiGammaLR, milestones: [1], gammas: [0.5]}
policies:
  - pruner: {instance_name: agp, args: {mini_batch_pruning_frequency: 2}}
    starting_epoch: 0
    ending_epoch: 2
    frequency: 1
  - {pruner: {instance_name: filters}, starting_epoch: 0, ending_epoch: 2, frequency: 1}
  - {regularizer: {instance_name: l1}, epochs: [0, 1]}
  - {lr_scheduler: {instance_name: rate}, epochs: [0, 1]}
"""
