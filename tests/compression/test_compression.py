"""A schedule beside a training of a few weights: masks hold after every step, and resume is exact."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_equal, run_script_on_two_ranks
from schedules import schedule_of
from torch import Tensor, nn
from toy_training import CPU, DESCRIBE, UNOFFICIAL, Loader, losses_of
from two_ranks import on_two_ranks

from ssd.batch import MatchedBatch
from ssd.checkpoints import checkpoint
from ssd.compression import attach
from ssd.compression.attach import compress
from ssd.compression.schedules.distiller_yaml import read_schedule
from ssd.compression.schedules.masks import Compression
from ssd.config import Config
from ssd.detectors.channels import Plan, Stream, thinned
from ssd.detectors.contract import Detector
from ssd.detectors.ssd300.detector import DETECTOR
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.run.files import Run
from ssd.training.evaluations import Judge
from ssd.training.loop import train
from ssd.training.optimizer import build_optimizer
from ssd.training.state import Training

STEPS_PER_EPOCH = Loader.steps_per_epoch


class Net(nn.Module):
    """Two convolutions, a batch norm and a linear layer: kernels, filters and rows to prune."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.second(self.norm(self.first(images[:, :, None, None])).relu()).flatten(1).relu())


def new_training(
    text: str, ranks: Ranks = CPU, scaler: Any = None, channels: Plan | None = None, **settings: Any
) -> tuple[Training, Compression]:
    """channels: of a model that was thinned."""
    torch.manual_seed(0)
    config = Config(**{"learning_rate": 1.0, "batch_size": 2, "epochs": 4, "log_interval": 1, "seed": 5, **settings})
    model = thinned(Net(), channels) if channels else Net()
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    training = Training(model, build_optimizer(model, config), scaler, losses_of, config, ranks)
    compress(training, read_schedule(text, Path("s.yaml")), STEPS_PER_EPOCH)
    (companion,) = training.companions
    assert isinstance(companion, Compression)
    return training, companion


def take_steps(
    training: Training, first: int, last: int, after: Callable[[int], None] = lambda step: None, lr: float = 0.05
) -> None:
    """Steps first, ..., last - 1 as the loop takes them."""
    from ssd.training.step import build_step

    step_of = build_step(training)
    training.model.train()
    for step in range(first, last):
        training.step = step
        rate = lr
        for companion in training.companions:
            rate = companion.before_step(step, rate)
        images = Loader.random_images(step)
        step_of(
            MatchedBatch(images, torch.zeros(len(images)), torch.zeros(len(images)), torch.zeros(len(images))), rate
        )
        for companion in training.companions:
            companion.after_step(step)
        after(step)


FILTERS = ("weights: [second.weight, first.weight]", "group_type: Filters")
HALF = schedule_of("SparsityLevelParameterPruner", "levels: {second.weight: 0.5, last.weight: 0.25}", epochs=[0])


def net_as_detector(settings: Any) -> Detector:
    """A record that says what can be taken out of a Net."""
    return DETECTOR._replace(streams=lambda model: [Stream([[("first", "norm")]], ["second"])])


@pytest.fixture
def streams_of_net(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "detector_of", net_as_detector)


REMOVER = """extensions:
  remover: {class: FilterRemover, thinning_func_str: remove_filters, arch: any, dataset: any}
"""
REMOVES = "  - extension: {instance_name: remover}\n    epochs: [1]\n"


@pytest.mark.parametrize("ema", [None, 0.5])
def test_filters_are_taken_out_while_training_goes_on(streams_of_net: None, ema: float | None) -> None:
    text = REMOVER + schedule_of(
        "L1RankedStructureParameterPruner", "weights: [first.weight]", FILTERS[1], "desired_sparsity: 0.5", epochs=[0],
        more=REMOVES,
    )  # fmt: skip
    training, companion = new_training(text, ema=ema)
    take_steps(training, 0, STEPS_PER_EPOCH)
    model: Any = training.model
    assert model.first.out_channels == 8
    kept = companion.masks["first.weight"].flatten(1).amin(dim=1).bool()
    momentum = training.optimizer.state[model.norm.weight]["momentum_buffer"]
    judged = [training.model, training.judged_model]
    images = Loader.random_images(77)
    before = [copy.deepcopy(each).eval()(images) for each in judged]
    companion.before_step(STEPS_PER_EPOCH, 0.05)
    # One of the filters of zeros may stay and say what all of them do.
    assert kept.sum() == 4 and 4 <= model.first.out_channels <= 5 and model.channel_plan["first"]["out"] < 8
    for each, expected in zip(judged, before, strict=True):
        torch.testing.assert_close(copy.deepcopy(each).eval()(images), expected, rtol=1e-5, atol=1e-6)
    found = training.optimizer.state[model.norm.weight]["momentum_buffer"]
    assert set(momentum[kept].tolist()) <= set(found.tolist()) and found.abs().max() > 0
    assert training.version == 1 and companion.masks["first.weight"].shape == model.first.weight.shape
    values = {name: value.clone() for name, value in model.named_parameters()}
    take_steps(training, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH)
    assert all((value != values[name]).any() for name, value in model.named_parameters())
    assert all(p is q for p, q in zip(companion.weights.values(), model.parameters(), strict=True))
    if ema is not None:
        assert training.judged_model.get_parameter("first.weight").shape == model.first.weight.shape


def test_channels_that_nothing_reads_are_taken_out(streams_of_net: None) -> None:
    text = REMOVER.replace("FilterRemover", "ChannelRemover") + schedule_of(
        "L1RankedStructureParameterPruner", "weights: [second.weight]", "group_type: Channels", "desired_sparsity: 0.5",
        epochs=[0], more=REMOVES,
    )  # fmt: skip
    training, companion = new_training(text)
    take_steps(training, 0, STEPS_PER_EPOCH)
    model: Any = training.model
    images = Loader.random_images(77)
    before = copy.deepcopy(model).eval()(images)
    companion.before_step(STEPS_PER_EPOCH, 0.05)
    assert (model.first.out_channels, model.norm.num_features, model.second.in_channels) == (4, 4, 4)
    assert model.channel_plan == {"first": {"out": 4}, "norm": {"out": 4}, "second": {"in": 4}}
    torch.testing.assert_close(copy.deepcopy(model).eval()(images), before, rtol=1e-5, atol=1e-6)


def test_filters_that_predict_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = DETECTOR._replace(fresh_heads=lambda settings: ("second.",))
    monkeypatch.setattr(attach, "detector_of", lambda settings: heads)
    for given, is_named in ((FILTERS, True), (("weights: [first.weight]", FILTERS[1]), False)):
        text = schedule_of("L1RankedStructureParameterPruner", *given, "desired_sparsity: 0.5")
        training, _ = new_training(text)
        training.companions.clear()
        notes = compress(training, read_schedule(text, Path("s.yaml")), STEPS_PER_EPOCH)
        assert any("prunes filters of second.weight, each of which predicts" in note for note in notes) is is_named


@pytest.mark.parametrize(("kind", "statistic"), [("APoZ", "active"), ("Mean", "mean")])
def test_filters_are_ranked_by_what_they_said_in_the_epoch_before(kind: str, statistic: str) -> None:
    text = schedule_of(
        f"Activation{kind}RankedFilterPruner", "weights: [first.weight]", FILTERS[1], "desired_sparsity: 0.5",
        epochs=[0, 1],
    )  # fmt: skip
    training, companion = new_training(text)
    assert any("prunes nothing in epoch 0" in note for note in companion.notes)
    model: Any = training.model
    said: list[Tensor] = []
    model.norm.register_forward_hook(lambda _module, _inputs, output: said.append(output.detach().flatten(1).relu()))
    take_steps(training, 0, STEPS_PER_EPOCH)
    assert "first.weight" not in companion.masks
    model.eval()
    model(Loader.random_images(99))  # an evaluation, which does not count
    of_steps = torch.stack([(each > 0).float() if statistic == "active" else each for each in said[:-1]])
    scores = of_steps.mean(dim=(0, 1))
    take_steps(training, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1)
    torch.testing.assert_close(companion.memory.activations["first.weight"][statistic], scores)
    kept = companion.masks["first.weight"].flatten(1).amin(dim=1)
    assert kept.sum() == 4 and set(scores.argsort(stable=True)[4:].tolist()) == set(kept.nonzero().flatten().tolist())


def test_filters_that_say_nothing_end_the_run_after_its_first_step() -> None:
    """As of SSD300's heads, whose weights another convolution uses."""
    text = schedule_of("ActivationAPoZRankedFilterPruner_AGP", *AGP, *FILTERS)
    training, companion = new_training(text)
    assert companion.activations is not None
    companion.activations.stop()
    with pytest.raises(InputError, match="s.yaml: a pruner ranks filters by what they say, and nothing calls the lay"):
        take_steps(training, 0, 1)


def test_a_filter_that_is_gone_stays_gone() -> None:
    """Its batch norm may say more than any other."""
    from ssd.compression.schedules.element_masks import Span
    from ssd.compression.schedules.pruners import Call, Memory, new_masks

    weight = torch.ones(4, 1, 1, 1)
    weight[2] = 0
    memory = Memory(activations={"w": {"mean": torch.tensor([0.3, 0.1, 9.0, 0.2])}})
    given = {"desired_sparsity": 0.5, "group_type": "Filters", "weights": ["w"]}
    call = Call("p", given, {"w": weight}, {"w": None}, {"w": None}, Span(1, 0, 4, 1), memory)
    assert new_masks("ActivationMeanRankedFilterPruner", call)["w"].flatten().tolist() == [1, 0, 0, 1]


REGULARIZED = """
regularizers:
  lasso: {class: GroupLassoRegularizer, reg_regims: {second.weight: [0.05, 3D]}, threshold_criteria: Mean_Abs}
policies:
  - {regularizer: {instance_name: lasso, args: {keep_mask: true}}, epochs: [1, 2]}
"""


def test_a_regularizer_adds_its_loss_and_zeroes_what_is_small() -> None:
    training, companion = new_training(REGULARIZED)
    weight = training.model.get_parameter("second.weight")
    with torch.no_grad():
        weight[2] = 0.01
    seen = []
    take_steps(training, 0, 12, lambda step: seen.append(bool((weight[2] == 0).all())))
    assert seen[:3] == [False] * 3 and all(seen[3:])
    assert int((companion.masks["second.weight"] == 0).sum()) >= 8  # kept after its last epoch
    companion.before_step(12, 0.1)
    assert companion.regularization() == 0
    companion.epoch = 1
    norms = weight.detach().flatten(1).norm(dim=1)
    assert companion.regularization().item() == pytest.approx(0.05 * float(norms.sum()), rel=1e-3)
    assert norms.sum() > 1
    training.train_step(training.model, MatchedBatch(Loader.random_images(0), *torch.zeros(3, 4)), 0.1)
    assert training.loss_names == ("box", "class", "regularization")


def test_a_schedules_own_rates() -> None:
    text = HALF.replace("policies:", "lr_schedulers: {l: {class: StepLR, step_size: 2, gamma: 0.5}}\npolicies:")
    text += "  - {lr_scheduler: {instance_name: l}, epochs: [0, 1, 2, 3]}\n"
    _, companion = new_training(text, learning_rate=3.2, batch_size=10, warmup=4)  # 3.2 x 10 / 32 = 1
    rates = [companion.before_step(step, 99.0) for step in range(12)]
    assert rates == pytest.approx([0.25, 0.5, 0.75] + [1] * 3 + [0.5] * 6)
    assert new_training(HALF)[1].before_step(0, 0.125) == 0.125


# --- interruptions ---

AGP = ("initial_sparsity: 0.1", "final_sparsity: 0.6")
STEP = "{mini_batch_pruning_frequency: 2}"
BAIDU = ("q: 0.3", "ramp_epoch_offset: 1", "ramp_slope_mult: 1.5")
DENSE = "{mask_on_forward_only: true, use_double_copies: true, mini_batch_pruning_frequency: 1}"
SCHEDULES = {
    "level": HALF,
    "agp": schedule_of("AutomatedGradualPruner", *AGP, FILTERS[0]),
    "sensitivity": schedule_of("SensitivityPruner", "sensitivities: {second.weight: 0.3, last.weight: 0.5}", args=STEP),
    "splicing": schedule_of(
        "SplicingPruner", "sensitivities: {second.weight: 0.1}", "low_thresh_mult: 0.8", "hi_thresh_mult: 1.1",
        args="{mask_on_forward_only: true, use_double_copies: true}",
    ),
    "baidu": schedule_of("BaiduRNNPruner", *BAIDU, FILTERS[0], args=STEP),
    "leader": schedule_of("L2RankedStructureParameterPruner_AGP", *AGP, *FILTERS, "group_dependency: Leader"),
    "folded": schedule_of("L1RankedStructureParameterPruner_AGP", *AGP, *FILTERS, args="{fold_batchnorm: true}"),
    "random": schedule_of("RandomRankedFilterPruner_AGP", *AGP, *FILTERS),
    "random level": schedule_of(
        "RandomLevelStructureParameterPruner", *FILTERS, "sparsity_range: [0.2, 0.6]", args=STEP
    ),
    "bernoulli": schedule_of("BernoulliFilterPruner", *FILTERS, "desired_sparsity: 0.4", args=DENSE),
    "gradient": schedule_of("GradientRankedFilterPruner_AGP", *AGP, *FILTERS),
    "activation": schedule_of("ActivationAPoZRankedFilterPruner_AGP", *AGP, *FILTERS),
    "double copies": schedule_of(
        "SparsityLevelParameterPruner", "levels: {'*': 0.3}", args="{use_double_copies: true}"
    ),
    "discard": schedule_of(
        "SparsityLevelParameterPruner", "levels: {second.weight: 0.3}",
        args="{discard_masks_at_minibatch_end: true, mini_batch_pruning_frequency: 2}",
    ),
    "structures": schedule_of(
        "StructureParameterPruner", "reg_regims: {second.weight: [0.15, Channels]}", "threshold_criteria: Mean_Abs"
    ),
    "regularized": REGULARIZED.replace("0.05", "0.2"),
    "remover": REMOVER + schedule_of("L1RankedStructureParameterPruner_AGP", *AGP, *FILTERS, more=REMOVES),
}  # fmt: skip


def run_of(training: Training, loader: Loader, folder: Path) -> None:
    judge = Judge(lambda _: torch.zeros(0, 7).numpy(), lambda detections: {"AP": 0.0, "AP50": 0.0})
    train(training, loader, judge, Run(folder, training.ranks), UNOFFICIAL, DESCRIBE)


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_interrupted_run_ends_with_the_same_weights(
    name: str, streams_of_net: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within an epoch and at its end, with all that the schedule remembers, bit for bit."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    settings: dict[str, Any] = {"checkpoint_every": (1, "steps"), "keep_checkpoints": 99, "ema": 0.8, "epochs": 3}
    text, undisturbed = SCHEDULES[name], tmp_path / "undisturbed"
    training, companion = new_training(text, **settings)
    run_of(training, Loader(), undisturbed)
    expected = {**training.state(), "tally": None}
    assert name == "discard" or any((p == 0).any() for p in training.model.parameters())
    for step in (4, 6):
        content = checkpoint.load_run(undisturbed / "checkpoints" / f"step-{step:08}.pt")
        again = {**settings, "checkpoint_every": (9, "steps"), "channels": content.get("channels")}
        resumed, loader = new_training(text, **again)[0], Loader()
        resumed.model.load_state_dict(content["model"])
        resumed.restore(content)
        loader.restore(bytes(content["data_states"][0].tolist()))
        run_of(resumed, loader, tmp_path / f"from {step}")
        assert_equal({**resumed.state(), "tally": None}, expected)


def test_another_schedule_goes_on_from_the_masks() -> None:
    training, companion = new_training(HALF)
    take_steps(training, 0, 2)
    other = new_training(HALF.replace("0.25", "0.5"))[1]
    other.restore(companion.state())
    assert_equal(other.masks, companion.masks)
    assert other.epoch == -1


# --- two ranks ---

TWO_RANKS = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(Path(__file__).parent)!r})

import torch
from test_compression import *
from ssd.distributed import process_group

folder = Path(sys.argv[1])
attach.detector_of = net_as_detector
with process_group("cpu") as ranks:
    found = {{}}
    for name, text in SCHEDULES.items():
        training, companion = new_training(text, ranks=ranks, ema=0.8, clip_norm=1.0)
        # What would make the ranks choose other masks, if each chose its own.
        companion.memory.generator.manual_seed(ranks.rank)
        with torch.no_grad():
            training.model.norm.running_var.mul_(1 + ranks.rank * torch.rand(8))
        images_of = lambda step: Loader.random_images(2 * step + ranks.rank)
        run_of(training, Loader(images_of), folder / name)
        found[name] = {{
            "weights": {{n: p.detach() for n, p in training.model.named_parameters()}},
            "average": {{n: p.detach() for n, p in training.judged_model.named_parameters()}},
            "masks": companion.masks,
        }}
    torch.save(found, folder / f"rank{{ranks.rank}}.pt")
"""


def zeros_of_a_rank(ranks: Ranks) -> list[bool]:
    """Of weights that differ between the ranks, after a step under a regularizer with a threshold."""
    torch.set_num_threads(1)
    training, companion = new_training(REGULARIZED, ranks=ranks)
    weight = training.model.get_parameter("second.weight")
    with torch.no_grad():
        weight[2 + ranks.rank] = 0.01
    step = STEPS_PER_EPOCH
    companion.before_step(step, 0.1)
    companion.after_step(step)
    zeros: list[bool] = (weight == 0).flatten(1).all(dim=1).tolist()
    return zeros


@pytest.mark.slow
def test_two_ranks_zero_the_same_groups() -> None:
    """What is small on rank 0, whatever it is on the other."""
    one, two = on_two_ranks(zeros_of_a_rank)
    assert one == two and one[2] and not one[3]


@pytest.mark.slow
def test_two_ranks_have_the_same_masks(tmp_path: Path) -> None:
    run_script_on_two_ranks(TWO_RANKS, tmp_path)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert one.keys() == SCHEDULES.keys()
    assert_equal(one, two)
