"""The rules by which weights are pruned, against values computed by hand and Distiller's published ones."""

import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune

from ssd.compression import structures
from ssd.compression.schedules import element_masks, regularizers
from ssd.compression.schedules.element_masks import Span
from ssd.compression.schedules.pruners import Call, Memory, new_masks

# Of automated gradual pruning from .05 to .85 over epochs 0-45, every epoch, as Distiller prints them.
AGP_BY_1 = """.05 .103315 .154207 .202733 .248948 .292909 .334673 .374296 .411833 .447342 .480879 .5125 .542261 .570220
.596431 .620952 .643839 .665148 .684936 .703259 .720173 .735734 .75 .763026 .774869 .785584 .795229 .803860 .811533
.818304 .824230 .829367 .833772 .8375 .840609 .843154 .845192 .846779 .847971 .848826 .849399 .849746 .849925 .849991
.85"""
AGP_BY_3 = """.05 .209475 .346210 .461953 .558455 .637464 .700729 .75 .787026 .813557 .831341 .842128 .847668 .849708
.85"""
PRUNED_OF_1000 = [50, 209, 346, 461, 558, 637, 700, 750, 787, 813, 831, 842, 847, 849, 850]
RISING = torch.arange(1.0, 10.0).view(3, 3)


def call(
    weights: dict[str, Tensor], span: Span | None = None, memory: Memory | None = None, /, **arguments: object
) -> Call:
    nothing = dict.fromkeys(weights)
    return Call("p", arguments, weights, nothing, dict(nothing), span or Span(0, 0, 1, 1), memory or Memory())


# --- automated gradual pruning ---


@pytest.mark.parametrize(
    ("table", "end", "frequency"), [(AGP_BY_1, 45, 1), (AGP_BY_3, 43, 3), (AGP_BY_3, 44, 3), (AGP_BY_3, 45, 3)]
)
def test_gradual_sparsities_are_distillers(table: str, end: int, frequency: int) -> None:
    found = [element_masks.gradual_sparsity(0.05, 0.85, Span(e, 0, end, frequency)) for e in range(0, end, frequency)]
    assert found == pytest.approx([float(value) for value in table.split()], abs=1e-6)


def test_gradual_pruning_truncates_what_it_prunes() -> None:
    weight = torch.randperm(1000).float() + 1
    for epoch, count in zip(range(0, 45, 3), PRUNED_OF_1000, strict=True):
        given = call({"w": weight}, Span(epoch, 0, 45, 3), initial_sparsity=0.05, final_sparsity=0.85)
        assert int((new_masks("AutomatedGradualPruner", given)["w"] == 0).sum()) == count


@pytest.mark.parametrize(
    ("initial", "final", "start", "end", "frequency", "expected"),
    [(0, 0.5, 2, 8, 2, [0, 0.4375, 0.5]), (0.05, 0.2, 0, 2, 1, [0.05, 0.2])],
)
def test_short_gradual_schedules(
    initial: float, final: float, start: int, end: int, frequency: int, expected: list[float]
) -> None:
    spans = [Span(e, start, end, frequency) for e in range(start, end, frequency)]
    assert [element_masks.gradual_sparsity(initial, final, span) for span in spans] == pytest.approx(
        expected, abs=1e-12
    )


# --- levels ---


@pytest.mark.parametrize(("sparsity", "pruned"), [(0.3, 3), (0.35, 3), (0.85, 8)])
def test_a_level_truncates(sparsity: float, pruned: int) -> None:
    weight = torch.tensor([0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8, 0.9, -1.0])
    mask = element_masks.level_mask(weight, sparsity)
    assert mask is not None and mask.tolist() == [0.0] * pruned + [1.0] * (10 - pruned)


def test_the_float_product_is_truncated_as_it_is() -> None:
    mask = element_masks.level_mask(torch.arange(1.0, 101), 0.57)
    assert mask is not None and int((mask == 0).sum()) == 56  # .57 * 100 is 56.99999999999999


def test_of_equal_weights_only_the_first_are_pruned() -> None:
    """Distiller prunes all four that equal the threshold."""
    mask = element_masks.level_mask(torch.tensor([1.0, -1, 1, 1, 2, 2, 3, 4, 5, 6]), 0.2)
    assert mask is not None and mask.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]


def test_less_than_one_weight_prunes_none() -> None:
    assert element_masks.level_mask(torch.ones(10), 0.05) is None  # an IndexError in Distiller
    assert element_masks.level_mask(torch.ones(10), 0.0) is None


def test_what_is_zero_stays_pruned_at_a_lower_level() -> None:
    weight = torch.cat([torch.zeros(85), torch.ones(15)])[torch.randperm(100)]
    mask = element_masks.level_mask(weight, 0.01)
    assert mask is not None and torch.equal(mask, (weight != 0).float())


@pytest.mark.parametrize("sparsity", [0.01, 0.4, 0.999, 1.0])
def test_levels_agree_with_torchs_own_where_no_weights_are_equal(sparsity: float) -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(40, 25, bias=False)
    weight = module.weight.detach().clone()
    prune.l1_unstructured(module, "weight", amount=int(sparsity * 1000))
    mask = element_masks.level_mask(weight, sparsity)
    assert mask is not None and torch.equal(mask, module.weight_mask)


def test_levels_by_name_and_for_the_others() -> None:
    weights = {"a": torch.arange(1.0, 11), "b": torch.arange(1.0, 11), "c": torch.arange(1.0, 11)}
    masks = new_masks("SparsityLevelParameterPruner", call(weights, levels={"a": 0.5, "c": 0.0, "*": 0.2}))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"a": 5, "b": 8}


# --- other rules of single elements ---


def test_a_magnitude_must_exceed_its_threshold() -> None:
    weights = {"a": torch.tensor([0.5, -0.5, 0.6]), "b": torch.tensor([0.1, 0.2, -0.3])}
    masks = new_masks("MagnitudeParameterPruner", call(weights, thresholds={"a": 0.5, "*": 0.15}))
    assert masks["a"].tolist() == [0, 0, 1] and masks["b"].tolist() == [0, 1, 1]


def test_sensitivity_goes_by_the_first_standard_deviation() -> None:
    weight, memory = torch.tensor([1.0, 2.0, 3.0, 4.0]), Memory()  # unbiased deviation 1.29099
    given = call({"w": weight}, None, memory, sensitivities={"w": 2.0})
    assert new_masks("SensitivityPruner", given)["w"].tolist() == [0, 0, 1, 1]  # 2.58
    weight.mul_(0.1)
    assert new_masks("SensitivityPruner", given)["w"].tolist() == [0, 0, 0, 0]
    assert memory.measured == {"w": {"std": pytest.approx(1.2909944)}}


def test_splicing_brings_back_what_has_grown() -> None:
    weight = torch.tensor([1.0, -2.0, 3.0, -4.0])  # of magnitudes: mean 2.5, deviation 1.29099; b = 3.79099
    settings = {"low_thresh_mult": 0.5, "hi_thresh_mult": 0.7, "sensitivities": {"*": 1.0}}
    given = call({"w": weight}, **settings)
    mask = new_masks("SplicingPruner", given)["w"]
    assert mask.tolist() == [0, 1, 1, 1]  # 1.8955 and 2.6537
    given.masks["w"] = mask
    weight.copy_(torch.tensor([2.0, 1.0, 2.0, 2.7]))
    mask = new_masks("SplicingPruner", given)["w"]
    assert mask.tolist() == [0, 0, 1, 1]
    given.masks["w"] = mask
    weight.copy_(torch.tensor([2.7, 2.0, 2.0, 2.0]))
    assert new_masks("SplicingPruner", given)["w"].tolist() == [1, 0, 1, 1]


def test_a_splicing_sensitivity_may_grow() -> None:
    assert element_masks.growing_sensitivity(0.2, 0.5, Span(7, 3, 9, 1)) == pytest.approx(0.6)
    assert element_masks.growing_sensitivity(0.2, 0.0, Span(7, 3, 9, 1)) == 0.2


def test_baidus_threshold_has_two_slopes() -> None:
    """a = 2 * 0.3 * 2 / (2 * 4 + 3 * 6) = 1.2 / 26."""
    a = 1.2 / 26
    found = [element_masks.baidu_threshold(0.3, 4, 1.5, Span(e, 2, 12, 2)) for e in (2, 4, 6, 8)]
    assert found == pytest.approx([a / 2, 3 * a / 2, (5 * a + 1.5 * a) / 2, (5 * a + 1.5 * a * 3) / 2])
    given = call({"w": torch.tensor([a / 2, 0.1])}, Span(2, 2, 12, 2), q=0.3, ramp_epoch_offset=4, ramp_slope_mult=1.5)
    assert new_masks("BaiduRNNPruner", given)["w"].tolist() == [0, 1]


# --- groups ---


@pytest.mark.parametrize(
    ("group_type", "shape", "block_shape", "num_groups"),
    [
        ("Filters", (8, 6, 3, 2), None, 8), ("3D", (8, 6, 3, 2), None, 8), ("Channels", (8, 6, 3, 2), None, 6),
        ("Channels", (8, 6), None, 6), ("2D", (8, 6, 3, 2), None, 48), ("Rows", (8, 6), None, 8),
        ("Cols", (8, 6), None, 6),
        ("4D", (8, 6, 3, 2), None, 1), ("Blocks", (8, 6, 3, 2), [4, 1, 1, 1], 72),
        ("Blocks", (8, 6, 3, 2), [2, 3, 1, 1], 48),
    ],
)  # fmt: skip
def test_spreading_over_groups_undoes_grouping(
    group_type: str, shape: tuple[int, ...], block_shape: list[int] | None, num_groups: int
) -> None:
    weight = torch.rand(shape)
    grouped = structures.groups(weight, group_type, block_shape)
    assert grouped.shape == (num_groups, weight.numel() // num_groups)
    # Each element belongs to the group that has its value.
    number = structures.spread(torch.arange(float(num_groups)), shape, group_type, block_shape)
    for group in range(num_groups):
        assert set(weight[number == group].tolist()) == set(grouped[group].tolist())


def test_the_groups_are_where_they_should_be() -> None:
    shape = (4, 4, 1, 2)
    filters = structures.spread(torch.arange(4.0), shape, "Filters")
    assert filters[2].unique().tolist() == [2]
    channels = structures.spread(torch.arange(4.0), shape, "Channels")
    assert channels[:, 3].unique().tolist() == [3]
    block = structures.spread(torch.tensor([1.0, 0, 0, 0]), shape, "Blocks", [4, 2, 1, 1])
    assert block.nonzero()[:, 1:].unique(dim=0).tolist() == [[0, 0, 0], [1, 0, 0]]  # channels 0 and 1, first place


@pytest.mark.parametrize("criterion", ["Max", "Mean_Abs"])
def test_a_group_above_its_threshold_stays(criterion: str) -> None:
    weight = torch.tensor([[0.1, 0.1, -0.7], [0.2, 0.2, 0.2]])  # means .3 and .2, greatest .7 and .2
    given = call({"w": weight}, reg_regims={"w": (0.2, "Rows")}, threshold_criteria=criterion)
    assert new_masks("StructureParameterPruner", given)["w"].tolist() == [[1, 1, 1], [0, 0, 0]]
    given = call({"w": weight}, reg_regims={"w": (0.25, "Cols")}, threshold_criteria=criterion)
    assert new_masks("StructureParameterPruner", given)["w"][0].tolist() == [0, 0, 1]


# --- ranked structures ---


def ranked(
    class_name: str, weights: dict[str, Tensor], memory: Memory | None = None, /, **arguments: object
) -> dict[str, Tensor]:
    return new_masks(class_name, call(weights, None, memory, weights=list(weights), **arguments))


def test_half_of_three_columns_is_one() -> None:
    """Distiller's own test: of 1-9 in three rows, "Channels" at .5 keep the last two columns."""
    mask = ranked("L1RankedStructureParameterPruner", {"w": RISING}, group_type="Channels", desired_sparsity=0.5)["w"]
    assert mask[0].tolist() == mask[2].tolist() == [0, 1, 1]


def test_rows_of_a_linear_layer_are_its_inputs() -> None:
    mask = ranked("L1RankedStructureParameterPruner", {"w": RISING}, group_type="Rows", desired_sparsity=0.5)["w"]
    assert mask[0].tolist() == [0, 1, 1]


def test_a_tenth_of_sixteen_filters_is_one() -> None:
    weight = torch.rand(16, 3, 3, 3) + 0.1
    weight[5] *= 0.01
    mask = ranked("L2RankedStructureParameterPruner", {"w": weight}, group_type="3D", desired_sparsity=0.1)["w"]
    assert [filter for filter in range(16) if not mask[filter].any()] == [5] and mask.sum() == 15 * 27


@pytest.mark.parametrize(("sparsity", "pruned"), [(0.05, 0), (0.99, 15), (1.0, 16)])
def test_all_filters_go_only_if_that_is_asked(sparsity: float, pruned: int) -> None:
    masks = ranked(
        "L1RankedStructureParameterPruner",
        {"w": torch.rand(16, 1, 1, 1)},
        group_type="Filters",
        desired_sparsity=sparsity,
    )
    assert masks == {} if pruned == 0 else int((masks["w"] == 0).sum()) == pruned


def test_norms_rank_by_l1_and_by_l2() -> None:
    weight = torch.tensor([[3.0, 0.0], [2.0, 2.0]]).view(2, 2, 1, 1)  # L1: 3 and 4; L2: 3 and 2.83
    given = {"group_type": "Filters", "desired_sparsity": 0.5}
    assert ranked("L1RankedStructureParameterPruner", {"w": weight}, **given)["w"].flatten(1)[:, 0].tolist() == [0, 1]
    assert ranked("L2RankedStructureParameterPruner", {"w": weight}, **given)["w"].flatten(1)[:, 0].tolist() == [1, 0]


def test_the_first_tensor_decides_for_all() -> None:
    weights = {
        "first": torch.tensor([5.0, 1, 4, 2]).view(4, 1, 1, 1),
        "other": torch.tensor([1.0, 9, 1, 9]).view(4, 1, 1, 1),
    }
    given = {"group_type": "Filters", "desired_sparsity": 0.5, "group_dependency": "Leader"}
    memory = Memory()
    masks = ranked("L1RankedStructureParameterPruner", weights, memory, **given)
    assert masks["first"].flatten().tolist() == masks["other"].flatten().tolist() == [1, 0, 1, 0]
    weights["first"].mul_(-1).add_(6)  # another order, at the same level: the choice stays
    again = ranked("L1RankedStructureParameterPruner", weights, memory, **given)
    assert torch.equal(again["other"], masks["other"])
    other_level = ranked("L1RankedStructureParameterPruner", weights, memory, **{**given, "desired_sparsity": 0.25})
    assert other_level["other"].flatten().tolist() == [0, 1, 1, 1]


def test_blocks_of_four_filters() -> None:
    weight = torch.rand(8, 3, 2, 2) + 0.5
    weight[4:, 1, 0, 1] = 0.01
    given = {"group_type": "Blocks", "kwargs": {"block_shape": [4, 1, 1, 1]}, "desired_sparsity": 0.05}  # one of 24
    mask = ranked("L1RankedStructureParameterPruner", {"w": weight}, **given)["w"]
    assert (mask == 0).nonzero().tolist() == [[filter, 1, 0, 1] for filter in range(4, 8)]


def test_gradual_structures_rise_with_the_epochs() -> None:
    weights = {"w": torch.rand(100, 1, 1, 1)}
    given = {"initial_sparsity": 0.05, "final_sparsity": 0.85, "group_type": "Filters", "weights": ["w"]}
    pruned = []
    for epoch in range(0, 45, 3):
        masks = new_masks("L1RankedStructureParameterPruner_AGP", call(weights, Span(epoch, 0, 45, 3), **given))
        pruned.append(int((masks["w"] == 0).sum()))
    assert pruned == [int(float(value) * 100 + 1e-9) for value in AGP_BY_3.split()]


def test_gradients_rank_by_their_signed_products() -> None:
    weights = {"w": torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1)}
    given = call(weights, group_type="Filters", desired_sparsity=0.5, weights=["w"])
    assert new_masks("GradientRankedFilterPruner", given) == {}
    given.gradients["w"] = torch.tensor([5.0, -1, 1, -2]).view(4, 1, 1, 1)  # products 5, -2, 3, -8
    assert new_masks("GradientRankedFilterPruner", given)["w"].flatten().tolist() == [1, 0, 1, 0]
    given.gradients["w"] = torch.full((4, 1, 1, 1), torch.nan)
    assert new_masks("GradientRankedFilterPruner", given) == {}


def test_random_pruners_draw_from_their_own_generator() -> None:
    weights = {"w": torch.rand(100, 2, 1, 1)}
    given = {"group_type": "Filters", "desired_sparsity": 0.3}

    def drawn(class_name: str, seed: int, **arguments: object) -> Tensor:
        memory = Memory(generator=torch.Generator().manual_seed(seed))
        return ranked(class_name, weights, memory, **{"group_type": "Filters", **arguments})["w"]

    for class_name in ("RandomRankedFilterPruner", "BernoulliFilterPruner"):
        assert torch.equal(drawn(class_name, 1, **given), drawn(class_name, 1, **given))
        assert not torch.equal(drawn(class_name, 1, **given), drawn(class_name, 2, **given))
    assert int((drawn("RandomRankedFilterPruner", 1, **given) == 0).sum()) == 60
    scaled = drawn("BernoulliFilterPruner", 1, **given)[:, 0, 0, 0]
    assert scaled.mean() == pytest.approx(1)
    assert scaled.unique().tolist() == pytest.approx([0.0, 1 / float((scaled > 0).float().mean())])
    levels = {
        int((drawn("RandomLevelStructureParameterPruner", seed, sparsity_range=[0.2, 0.4]) == 0).sum())
        for seed in range(9)
    }
    assert len(levels) > 3 and min(levels) >= 40 and max(levels) < 80


# --- regularizers ---


def test_penalties_by_hand() -> None:
    weight = torch.tensor([[3.0, 0.0], [4.0, -5.0]])
    assert regularizers.l1(weight, 0.5) == 6
    rows, columns = 3 + 41**0.5, 5 + 5
    for group_type, expected in (("Rows", rows), ("Cols", columns), ("Rows+Cols", rows + columns)):
        assert regularizers.group_lasso(weight, 2.0, group_type) == pytest.approx(2 * expected, rel=1e-6)
    kernels = weight.view(2, 2, 1, 1)
    for group_type, expected in (
        ("3D", rows),
        ("Channels", columns),
        ("2D", 12),
        ("4D", 50**0.5),
        ("Channels+4D", columns + 50**0.5),
    ):
        assert regularizers.group_lasso(kernels, 1.0, group_type) == pytest.approx(expected, abs=2e-4)
    spread = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert regularizers.group_variance(spread, 1.0, "Channels") == pytest.approx(2.0)  # variance of 3 and 4 is 1/2


def test_a_penalty_of_zeros_has_a_finite_slope() -> None:
    weight = torch.zeros(2, 2, 1, 1, requires_grad=True)
    regularizers.group_lasso(weight, 1.0, "Channels").backward()
    assert weight.grad is not None and weight.grad.isfinite().all()


def test_what_a_regularizer_zeroes() -> None:
    weight = torch.tensor([[3.0, 0.1], [0.2, -0.1]])
    assert regularizers.kept_elements(weight, 0.1).tolist() == [[1, 0], [1, 0]]
    assert regularizers.kept_groups(weight, 0.15, "Rows", "Mean_Abs").tolist() == [[1, 1], [0, 0]]
    assert regularizers.kept_groups(weight, 0.15, "Rows", "Max").tolist() == [[1, 1], [1, 1]]
