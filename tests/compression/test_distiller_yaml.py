"""Distiller's language: what is read as it means it, and that every mistake is named with its line."""

import math
from pathlib import Path

import pytest
import torch
from schedules import MASK_RCNN, MASK_RCNN_BOX_HEAD, mask_rcnn_schedule, schedule_of
from torch import nn

from ssd.compression.schedules.binding import bind
from ssd.compression.schedules.distiller_yaml import Schedule, load_schedule, read_schedule
from ssd.compression.schedules.lr_rates import rates_of
from ssd.compression.schedules.masks import Compression
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.schedule import Warmup

FILE = Path("prune.yaml")


def read(text: str) -> Schedule:
    return read_schedule(text, FILE)


def refusal(text: str) -> str:
    with pytest.raises(InputError) as found:
        read(text)
    assert "\n" not in str(found.value)
    return str(found.value)


AGP = ("AutomatedGradualPruner", "weights: [a]", "initial_sparsity: .1", "final_sparsity: .5")
LEVEL = ("SparsityLevelParameterPruner", "levels: {a.weight: 0.5}")


def test_epochs_are_a_range_or_a_list() -> None:
    (policy,) = read(schedule_of(*LEVEL, epochs=(2, 9, 3))).policies
    assert (policy.epochs, policy.start, policy.end, policy.frequency) == ((2, 5, 8), 2, 9, 3)
    (policy,) = read(schedule_of(*LEVEL, epochs=[1, 2, 3])).policies
    assert (policy.epochs, policy.start, policy.end, policy.frequency) == ((1, 2, 3), 1, 4, None)
    both = schedule_of(*LEVEL) + "    epochs: [7]\n"
    assert read(both).policies[0].epochs == (7,)


def test_policies_keep_their_order_and_arguments() -> None:
    text = schedule_of(*LEVEL, args="{keep_mask: true, mini_batch_pruning_frequency: 5}")
    text += "  - {pruner: {instance_name: p, args: {levels: {'*': 0.25}}}, epochs: [5]}\n"
    first, second = read(text).policies
    assert first.args == {"keep_mask": True, "mini_batch_pruning_frequency": 5} and first.epochs == (0, 1, 2, 3)
    assert second.args == {"levels": {"*": 0.25}}
    assert first.instance.arguments == {"levels": {"a.weight": 0.5}}


def test_a_policy_ends_with_the_epoch_before_its_ending_epoch() -> None:
    """Also where its frequency never reaches that one: of 0, 3, 6 in 0..8 the last is 7."""
    text = schedule_of(LEVEL[0], "levels: {last.weight: 0.5}", epochs=(0, 8, 3))
    (bound,), _ = bind(read(text), Small(), 10)
    assert bound.policy.epochs == (0, 3, 6) and bound.last_epoch == 7


def test_numbers_that_yaml_takes_for_words() -> None:
    (policy,) = read(schedule_of("MagnitudeParameterPruner", "thresholds: {'*': 1e-3}")).policies
    assert policy.instance.arguments["thresholds"] == {"*": 0.001}


def test_the_published_mask_rcnn_schedule_fits_torchvisions_model() -> None:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    schedule = read(mask_rcnn_schedule())
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    for parameter in model.backbone.body.layer1.parameters():
        parameter.requires_grad_(False)
    bound, notes = bind(schedule, model, num_epochs=13)
    counts = [len(each.tensors) for each in bound]
    assert counts == [13, 44, 9, 2] == [*map(len, MASK_RCNN.values()), len(MASK_RCNN_BOX_HEAD)]
    assert "backbone.fpn.inner_blocks.3.0.weight" in bound[1].tensors
    assert "rpn.head.conv.0.0.weight" in bound[1].tensors and "roi_heads.mask_head.3.0.weight" in bound[1].tensors
    assert any("prunes 10 tensors that do not train" in note for note in notes)
    assert sum("ends with epoch 45, and this run has 13" in note for note in notes) == 4


@pytest.mark.slow
def test_the_published_mask_rcnn_schedule_leaves_the_published_non_zeros() -> None:
    """To the unit, by tensor and in total: each loses int(level x weights)."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    one_rank = Ranks(0, 0, 1, torch.device("cpu"))
    companion = Compression(
        read(mask_rcnn_schedule()), model, None, one_rank,
        steps_per_epoch=1, num_epochs=45, base_lr=0.02, warmup=Warmup(), seed=0,
    )  # fmt: skip
    for epoch in (42, 44):  # the last of the box head's policy, which acts every third, and of the others
        companion.before_step(epoch, 0.02)
        companion.after_step(epoch)
    left = [
        {name: int(model.get_parameter(name).count_nonzero()) for name in each.tensors} for each in companion.pruners
    ]
    assert [sum(counts.values()) for counts in left] == [114_688, 2_347_028, 1_389_367, 2_084_046]
    for each, counts in zip(companion.pruners, left, strict=True):
        for name, count in counts.items():
            weights = model.get_parameter(name).numel()
            assert count == weights - int(each.arguments["final_sparsity"] * weights), name
    assert left[3]["roi_heads.box_head.fc6.weight"] == 1_926_759
    assert left[2]["backbone.body.layer4.1.conv2.weight"] == 235_930
    assert left[1]["rpn.head.conv.0.0.weight"] == 88_474
    weights = [p for p in model.parameters() if p.dim() in (2, 4)]
    assert sum(p.numel() for p in weights) == 44_395_200
    assert sum(int(p.count_nonzero()) for p in weights) == 6_437_593


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 1, groups=1), nn.Linear(8, 4)


def bound_refusal(text: str) -> str:
    with pytest.raises(InputError) as found:
        bind(read(text), Small(), 10)
    return str(found.value)


def test_what_a_schedule_does_to_a_model_is_said() -> None:
    text = schedule_of("MagnitudeParameterPruner", "thresholds: {'*': 0.1}")
    text = text.replace("pruners:\n", "pruners:\n  q: {class: SensitivityPruner, sensitivities: {last.weight: 1.0}}\n")
    text += "  - {pruner: {instance_name: q}, epochs: [3, 4]}\n"
    text = text.replace("policies:", "lr_schedulers: {l: {class: StepLR, step_size: 1}}\npolicies:")
    text += "  - {lr_scheduler: {instance_name: l}, epochs: [1]}\n"
    bound, notes = bind(read(text), Small(), 10)
    assert len(bound[0].tensors) == len(list(Small().parameters())) and bound[1].tensors == ["last.weight"]
    assert [note.partition(": ")[2].split(",")[0] for note in notes] == [
        "'*' prunes biases and batch norm too",
        "prunes what the policy of line 8 prunes in the same epochs",
        "its lr_schedulers take the place of --schedule and --multistep",
    ]


@pytest.mark.parametrize(("epoch", "is_said"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_remover_amid_gradual_pruning_is_said(epoch: int, is_said: bool) -> None:
    """Later shares are then of the filters that are left: 0.4 of them become 63 %."""
    text = schedule_of(
        "L1RankedStructureParameterPruner_AGP",
        "initial_sparsity: 0.05", "final_sparsity: 0.4", "group_type: Filters", "weights: [first.weight]",
        epochs=(0, 3, 1),
    )  # fmt: skip
    text = text.replace("policies:", "extensions: {out: {class: FilterRemover}}\npolicies:")
    text += f"  - {{extension: {{instance_name: out}}, epochs: [{epoch}]}}\n"
    _, notes = bind(read(text), Small(), 10)
    assert any("let it act in epoch 2 alone" in note for note in notes) is is_said


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "prune.yaml:1: not valid YAML"),
        ("a: 1\nb: \x01", "prune.yaml:2: not valid YAML (unacceptable character #x0001"),
        ("a: 1\nb: !!int abc", "prune.yaml:2: not valid YAML ('abc' is no int)"),
        ("a: !!float x", "prune.yaml:1: not valid YAML ('x' is no float)"),
        ("a: !!int ''", "prune.yaml:1: not valid YAML ('' is no int)"),
        ("a: !!bool maybe", "prune.yaml:1: not valid YAML ('maybe' is no bool)"),
        ("a: " + "1" * 5000, "prune.yaml:1: not valid YAML ('111"),
        ("a: " + "[" * 3000, "prune.yaml: not valid YAML (its values lie too deep)"),
        ('? "a\\nb"\n: 1\n? "a\\nb"\n: 2', r"prune.yaml:3: 'a\nb' stands here twice"),
        ("", "has nothing in it"),
        ("- 1", "not a schedule, it has no section 'policies'"),
        ("pruners: {}", "not a schedule, it has no section 'policies'"),
        ("pruner: {}\npolicies: []", "prune.yaml:1: unknown section 'pruner'; did you mean pruners?"),
        ("policies: []", "prune.yaml:1: policies must be a list"),
        ("pruners:\n  a: {}\n  a: {}\npolicies: []", "prune.yaml:3: a stands here twice"),
        ("a: &a [*a]\npolicies: []", "prune.yaml:1: has too many values, or they lie too deep"),
        ("a: !!python/object/apply:os.system [ls]\npolicies: []", "prune.yaml:1: has the tag"),
        ("a: !!timestamp 2001-01-01\npolicies: []", "which names no plain value"),
        ("pruners: {p: {weights: [a]}}\npolicies: []", "prune.yaml:1: p has no class"),
        ("quantizers: {q: {class: PACTQuantizer}}\npolicies: []", "export --int8"),
        (schedule_of("SparsityLevelPruner", "levels: {a: 1}"), "did you mean SparsityLevelParameterPruner?"),
        (schedule_of("FMReconstructionChannelPruner"), "needs feature maps"),
        (schedule_of(LEVEL[0], "level: {a: 1}"), "yaml:4: p: SparsityLevelParameterPruner takes no argument 'level'"),
        ("extensions: {e: {class: FilterRemover, archi: x}}\npolicies: []", "no argument 'archi'; did you mean arch"),
        ("extensions: {e: {class: FilterRemove}}\npolicies: []", "did you mean FilterRemover?"),
        (schedule_of(LEVEL[0]), "p: SparsityLevelParameterPruner needs levels"),
        (schedule_of(LEVEL[0], "levels: {a: 1.5}"), "prune.yaml:4: p: levels must be a number in 0..1"),
        (schedule_of("MagnitudeParameterPruner", "thresholds: {a: 1}"), "must have an entry '*'"),
        (schedule_of(*LEVEL, epochs=(3, 3, 1)), "prune.yaml:8: ending_epoch must be more than starting_epoch"),
        (schedule_of(*LEVEL, epochs=(0, 3, 4)), "prune.yaml:9: frequency must be in 1..3"),
        (schedule_of(*LEVEL, epochs=[]), "epochs must be a list of whole numbers"),
        (schedule_of(*LEVEL).replace("    frequency: 1\n", ""), "frequency is missing"),
        (schedule_of(*LEVEL).replace("instance_name: p", "instance_name: {p: 1}"), "must be a name of an instance"),
        (schedule_of(*LEVEL).replace(LEVEL[0], "[a]"), "prune.yaml:3: p: class must be a name of a class"),
        (schedule_of(LEVEL[0], "levels: {a: .nan}"), "prune.yaml:4: p: levels must be a number in 0..1"),
        (schedule_of("SensitivityPruner", "sensitivities: {a: .inf}"), "sensitivities must be a number of 0 or more"),
        (schedule_of(*LEVEL).replace("frequency", "freqency"), "no key 'freqency'; did you mean frequency?"),
        (schedule_of(*LEVEL).replace("instance_name: p", "instance_name: q"), "'q' is not defined in pruners"),
        (schedule_of(*LEVEL).replace("- pruner", "- prunner"), "no key 'prunner'; did you mean pruner?"),
        (schedule_of(*LEVEL, args="{keep_masks: true}"), "no argument 'keep_masks'; did you mean keep_mask?"),
        (schedule_of(*LEVEL, args="{mask_gradients: true}"), "mask_gradients needs mask_on_forward_only"),
        (schedule_of(*LEVEL, args="{keep_mask: 1}"), "keep_mask must be true or false"),
        (schedule_of(*AGP, epochs=[1]), "goes by starting_epoch, ending_epoch and frequency"),
        (schedule_of(*AGP, epochs=(0, 3, 3)), "acts once only, in epoch 0"),
        (
            schedule_of("AutomatedGradualPruner", "weights: [a]", "initial_sparsity: .5", "final_sparsity: .5"),
            "final_sparsity must be more than initial_sparsity",
        ),
        (
            schedule_of("BernoulliFilterPruner", "weights: [a]", "group_type: Filters", "desired_sparsity: .5"),
            "pass mask_on_forward_only and use_double_copies",
        ),
        (
            "lr_schedulers: {l: {class: ReduceLROnPlateau}}\npolicies: []",
            "ReduceLROnPlateau depends on metrics",
        ),
        ("lr_schedulers: {l: {class: StepLR, size: 1}}\npolicies: []", "StepLR takes no argument 'size'"),
        ("lr_schedulers: {l: {class: StepLR}}\npolicies: []", "StepLR needs step_size"),
    ],
)  # fmt: skip
def test_mistakes_are_named(text: str, complaint: str) -> None:
    assert complaint in refusal(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (schedule_of(LEVEL[0], "levels:", "  last.bias: .1", "  frist.weight: .5"),
         "prune.yaml:6: the model has no tensor 'frist.weight'; did you mean first.weight?"),
        (schedule_of(*LEVEL, args="{levels: {nothing: .5}}").replace("a.weight", "last.weight"), "no tensor 'nothing'"),
        (schedule_of("L1RankedStructureParameterPruner", "weights: [first.weight, last.weight]", "group_type: Filters",
                     "desired_sparsity: .5"), "prune.yaml:4: last.weight has 2 dimensions, and Filters need 4"),
        (schedule_of("L1RankedStructureParameterPruner", "weights: [first.weight]", "group_type: Blocks",
                     "kwargs: {block_shape: [3, 1, 1, 1]}", "desired_sparsity: .5"), "blocks of 3 x 1 do not divide"),
        (schedule_of("L1RankedStructureParameterPruner", "weights: [first.weight, second.weight]",
                     "group_type: Channels", "desired_sparsity: .5", "group_dependency: Leader"),
         "has not as many Channels as its leader"),
        (schedule_of("AutomatedGradualPruner", "weights: ['*']", "initial_sparsity: .1", "final_sparsity: .5"),
         "prune.yaml:4: '*' stands for all tensors in thresholds, levels, sensitivities alone; name the tensors"),
        (schedule_of("StructureParameterPruner", "reg_regims: {'*': [0.1, Filters]}", "threshold_criteria: Max"),
         "prune.yaml:3: '*' stands for all tensors"),
        ("regularizers: {r: {class: L1Regularizer, reg_regims: {'*': 0.1}}}\n"
         "policies: [{regularizer: {instance_name: r}, epochs: [0]}]", "prune.yaml:1: '*' stands for all tensors"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_named(text: str, complaint: str) -> None:
    assert complaint in bound_refusal(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(InputError, match="cannot be read"):
            load_schedule(file)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        load_schedule(tmp_path / "binary.yaml")


def test_rates_of_a_schedule() -> None:
    multi = ("MultiStepMultiGammaLR", {"milestones": [30, 60, 80], "gammas": [0.1, 0.1, 0.2]}, range(100))
    rates = rates_of([multi], 0.1, 100)
    at = {epoch: rates[epoch] for epoch in (15, 30, 33, 60, 79, 80)}
    assert at == pytest.approx({15: 0.1, 30: 0.01, 33: 0.01, 60: 1e-3, 79: 1e-3, 80: 2e-4})
    polynomial = ("PolynomialLR", {"T_max": 4, "power": 2}, range(10))
    assert rates_of([polynomial], 1.0, 6) == pytest.approx([1, 0.5625, 0.25, 0.0625, 0, 0])
    # Of those that count steps, an epoch is one. Up by 0.3 an epoch, and down again.
    cyclic = {"base_lr": 0.1, "max_lr": 0.7, "step_size_up": 2, "cycle_momentum": False}
    assert rates_of([("CyclicLR", cyclic, range(9))], 1.0, 6) == pytest.approx([0.1, 0.4, 0.7, 0.4, 0.1, 0.4])
    # From 1/25 to 1 at 0.5 x 9 - 1, and down to nothing at 8.
    once = {"max_lr": 1.0, "total_steps": 9, "pct_start": 0.5, "anneal_strategy": "linear", "cycle_momentum": False}
    rates = rates_of([("OneCycleLR", once, range(9))], 1.0, 9)
    assert rates[:5] == pytest.approx([0.04 + 0.96 * e / 3.5 for e in range(4)] + [1 - 0.5 / 4.5], abs=1e-5)
    with pytest.raises(InputError, match="has no rate for epoch 10"):
        rates_of([("OneCycleLR", once, range(20))], 1.0, 20)
    no_rate = {-1.0: "makes a rate of -1 in epoch 1", math.nan: "makes a rate of nan", 1e300: "has no rate for epoch 2"}
    for gamma, complaint in no_rate.items():
        with pytest.raises(InputError, match=f"ExponentialLR {complaint}"):
            rates_of([("ExponentialLR", {"gamma": gamma}, range(3))], 1.0, 3)
    to_zero = ("LinearLR", {"start_factor": 0.1, "end_factor": 0, "total_iters": 3}, range(6))
    assert rates_of([to_zero], 0.01, 6)[3:] == pytest.approx([0, 0, 0], abs=1e-18)  # which torch makes -1.4e-19
    # torch's own; it acts in epochs 2 and 3, so that the rate changes from epoch 3 on.
    assert rates_of([("ExponentialLR", {"gamma": 0.5}, (2, 3))], 1.0, 6) == pytest.approx(
        [1, 1, 1, 0.125, 0.0625, 0.0625]
    )
