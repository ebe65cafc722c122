"""The terms of distillation: examples by hand, and independent implementations in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssd.boxes import pairwise_iou
from ssd.detectors.distillation import by_area, sigmoid_divergence, softmax_divergence
from ssd.detectors.ssd300.distillation.parts import PARTS as SSD300_PARTS
from ssd.detectors.torchvision.distillation.parts import distillation_parts
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.torchvision.targets import Targets, match
from ssd.distillation.methods import crosskd, gid
from ssd.distillation.methods.cwd import channel_divergence, cwd
from ssd.distillation.methods.instances import Instances, best, choose, of_kind, scores_and_boxes, usable
from ssd.distillation.methods.maps import Projections, pairs
from ssd.distillation.methods.mgd import Generators, mgd
from ssd.distillation.methods.pkd import correlation_loss, pkd
from ssd.matching import match as match_defaults

RETINANET = distillation_parts(settings_of("retinanet_resnet18_fpn"))
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def one_channel(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, 1, 2, 2)


# --- PKD ---


def test_pkd_by_hand() -> None:
    """Pearson's r of (0, 1, 2, 3) and (0, 2, 1, 3) is .8, and m = 4: (1 - .8) 3 / 4."""
    student, teacher = one_channel([0, 1, 2, 3]), one_channel([0, 2, 1, 3])
    assert correlation_loss(student, teacher).item() == pytest.approx(0.15, abs=1e-5)
    assert correlation_loss(5 * student - 7, student).item() == pytest.approx(0, abs=1e-5)


def pkd_as_written(student: Tensor, teacher: Tensor) -> Tensor:
    own, other = (each.transpose(0, 1).flatten(1) for each in (student, teacher))
    own, other = ((e - e.mean(1, keepdim=True)) / (e.std(1, keepdim=True) + 1e-6) for e in (own, other))
    return ((own - other) ** 2).mean() / 2


def test_pkd_and_its_gradient_equal_the_formula_in_float64() -> None:
    shape = (2, 3, 4, 5)
    student = (3 * noise(*shape) + 1).requires_grad_()
    teacher = noise(*shape, seed=1) + student.detach()
    loss = correlation_loss(student, teacher)
    loss.backward()
    exact = student.detach().double().requires_grad_()
    expected = pkd_as_written(exact, teacher.double())
    expected.backward()
    assert student.grad is not None and exact.grad is not None
    torch.testing.assert_close(loss.double(), expected, **CLOSE)
    torch.testing.assert_close(student.grad.double(), exact.grad, **CLOSE)
    small = noise(1, 2, 2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: correlation_loss(x, noise(1, 2, 2, 3, seed=4).double()), small)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_channel_has_a_finite_pkd(value: float) -> None:
    student, teacher = noise(2, 2, 3, 3), noise(2, 2, 3, 3, seed=1)
    student[:, 0] = value
    teacher[:, 1] = value
    student.requires_grad_()
    loss = correlation_loss(student, teacher)
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()
    half = 17 / 18 / 2  # of what is standardised against 0
    assert loss.item() == pytest.approx(half, abs=1e-3)


def test_a_map_of_16_bits_is_correlated_in_32() -> None:
    student, teacher = noise(2, 3, 8, 8) * 100, noise(2, 3, 8, 8, seed=1) * 100
    half = student.half().requires_grad_()
    loss = correlation_loss(half, teacher.half())
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad is not None and half.grad.dtype == torch.float16
    torch.testing.assert_close(loss, pkd_as_written(half.detach().float(), teacher.half().float()), **CLOSE)


def test_maps_of_another_size_are_resized_to_the_teachers() -> None:
    student, teacher = {"p3": noise(1, 2, 4, 4)}, [noise(1, 2, 8, 8, seed=1)]
    ((own, other),) = pairs(student, teacher)
    assert own.shape == other.shape == (1, 2, 8, 8)
    expected = F.interpolate(student["p3"], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(pkd(student, teacher), correlation_loss(expected, teacher[0]))


def test_only_maps_of_other_channels_are_projected() -> None:
    projections = Projections({"p3": (2, 5), "p4": (3, 3)}, has_bias=True)
    assert [name for name, _ in projections.named_parameters()] == ["convs.p3.weight", "convs.p3.bias"]
    maps = {"p3": noise(1, 2, 4, 4), "p4": noise(1, 3, 2, 2), "p5": noise(1, 3, 1, 1)}
    made = projections(maps)
    assert list(made) == ["p3", "p4"] and made["p3"].shape == (1, 5, 4, 4) and made["p4"] is maps["p4"]


# --- CWD and MGD ---


def test_cwd_by_hand() -> None:
    """log 2 log 2 ... of a channel of two places: teacher (3/4, 1/4), student (1/2, 1/2)."""
    teacher, student = torch.tensor([math.log(3), 0.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert channel_divergence(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)
    assert channel_divergence(teacher, teacher, 1.0).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_equals_the_formula_in_float64(temperature: float) -> None:
    student, teacher = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
    own, other = (np.exp(each.double().numpy().reshape(6, 20) / temperature) for each in (student, teacher))
    own, other = own / own.sum(1, keepdims=True), other / other.sum(1, keepdims=True)
    expected = (other * np.log(other / own)).sum() / (2 * 3) * temperature**2
    assert cwd({"p3": student}, [teacher], temperature).item() == pytest.approx(expected, rel=1e-5)


def test_mgd_sees_the_places_that_are_not_dropped_and_sums_the_squares_of_an_image() -> None:
    torch.manual_seed(0)
    generators = Generators({"p3": (2, 3)}, dropped=0.65, seed=4)
    features = noise(2, 2, 40, 40)
    again = torch.Generator().manual_seed(4)
    kept = torch.rand(2, 1, 40, 40, generator=again) >= 0.65
    assert 0.3 < kept.float().mean() < 0.4
    exact = generators.double()
    expected = exact.convs["p3"](exact.projections.convs["p3"](features.double()) * kept)
    made = exact({"p3": features.double()})["p3"]
    torch.testing.assert_close(made, expected)
    teacher = noise(2, 3, 40, 40, seed=1)
    squares = ((expected.detach().numpy() - teacher.double().numpy()) ** 2).sum() / 2
    assert mgd({"p3": made}, [teacher]).item() == pytest.approx(squares, rel=1e-5)
    before = generators.generator.get_state()
    second = exact({"p3": features.double()})["p3"]
    assert not torch.equal(second, made)  # each step drops others
    generators.generator.set_state(before)
    assert torch.equal(exact({"p3": features.double()})["p3"], second)


# --- GID: which instances ---

TEACHER = torch.tensor([[[0.9, 0.1], [0.2, 0.7], [0.1, 0.1], [0.8, 0.1]]])
STUDENT = torch.tensor([[[0.6, 0.2], [0.45, 0.6], [0.5, 0.1], [0.1, 0.8]]])
OF_TEACHER = torch.tensor([[[0.0, 0, 100, 100], [10, 0, 110, 100], [0, 0, 1, 1], [0, 0, 2, 2]]])
OF_STUDENT = torch.tensor([[[0.0, 0, 3, 3], [0, 0, 4, 4], [200, 200, 300, 300], [300, 0, 309, 100]]])
A, C, D = OF_TEACHER[0, 0], OF_STUDENT[0, 2], OF_STUDENT[0, 3]


def test_instances_by_hand() -> None:
    """A and B overlap by .818; D is a tie, so the student's, which the reimplementation's score cannot see and whose
    width of 9 pixels is too thin there."""
    scores, boxes = scores_and_boxes("paper", TEACHER, STUDENT, OF_TEACHER, OF_STUDENT)
    torch.testing.assert_close(scores[0], torch.tensor([0.3, 0.25, 0.4, 0.7]))
    chosen = choose(usable(scores, boxes, 0), boxes, 10, 0.3)
    assert chosen.real.sum() == 3 and torch.equal(chosen.boxes_ltrb_px[0, :3], torch.stack([D, C, A]))
    scores, boxes = scores_and_boxes("seed", TEACHER, STUDENT, OF_TEACHER, OF_STUDENT)
    torch.testing.assert_close(scores[0], torch.tensor([0.3, 0.1, 0.4, 0]))
    chosen = choose(usable(scores, boxes, 10), boxes, 10, 0.3)
    assert chosen.real.sum() == 2 and torch.equal(chosen.boxes_ltrb_px[0, :2], torch.stack([C, A]))


def test_instances_are_those_of_greedy_suppression() -> None:
    from torchvision.ops import nms

    scores = torch.rand(3, 200, generator=torch.Generator().manual_seed(1))
    corner = 200 * torch.rand(3, 200, 2, generator=torch.Generator().manual_seed(2))
    boxes = torch.cat([corner, corner + 60], dim=2)
    chosen = choose(scores, boxes, 10, 0.3)
    assert chosen.real.all()
    for image in range(3):
        kept = nms(boxes[image], scores[image], 0.3)[:10]
        assert torch.equal(chosen.boxes_ltrb_px[image], boxes[image, kept])
        assert torch.equal(chosen.scores[image], scores[image, kept])
    few, few_boxes, place = best(scores, boxes, 20)
    of_few = choose(few, few_boxes, 10, 0.3)
    assert torch.equal(boxes.gather(1, place.gather(1, of_few.places).unsqueeze(2).expand(-1, -1, 4))[of_few.real],
                       of_few.boxes_ltrb_px[of_few.real])  # fmt: skip
    for image in range(3):
        first = scores[image].sort(descending=True).indices[:20]
        kept = nms(boxes[image, first], scores[image, first], 0.3)[:10]
        assert torch.equal(of_few.boxes_ltrb_px[image][of_few.real[image]], boxes[image, first[kept]])


def test_what_is_not_finite_is_never_chosen() -> None:
    scores, boxes = torch.tensor([[math.nan, 0.5, 0.9]]), OF_TEACHER[:, :3].clone()
    boxes[0, 2, 0] = math.inf
    chosen = choose(usable(scores, boxes, 0), boxes, 10, 0.3)
    assert chosen.real.tolist() == [[True] + [False] * 9] and torch.equal(chosen.boxes_ltrb_px[0, 0], boxes[0, 1])
    assert chosen.boxes_ltrb_px.isfinite().all()


# Within the object (0, 0, 100, 100) lie .39, .45 and all; a box that fills up the batch is no object.
SHARED = torch.tensor([[[61.0, 0, 161, 10], [55, 0, 155, 10], [0, 0, 10, 10]]])
OBJECTS = torch.tensor([[[0.0, 0, 100, 100], [0, 0, 900, 900]]]), torch.tensor([[True, False]])


def instances_of(boxes: Tensor) -> Instances:
    count = boxes.shape[1]
    return Instances(boxes, torch.ones(1, count, dtype=torch.bool), torch.zeros(1, count), torch.arange(count)[None])


@pytest.mark.parametrize(("kind", "expected"), [("all", [1, 1, 1]), ("neg", [1, 0, 0]), ("semi_pos", [0, 1, 0]),
                                                 ("pos", [0, 0, 1])])  # fmt: skip
def test_kinds_of_instances_go_by_the_share_of_the_box_that_is_an_object(kind: str, expected: list[int]) -> None:
    found = of_kind(instances_of(SHARED), kind, (0.4, 0.5), OBJECTS)
    assert found.real.int().tolist() == [expected]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("all", [1, 1, 1, 1]), ("pos", [1, 0, 0, 0]), ("semi_pos", [0, 0, 1, 0]), ("neg", [0, 0, 0, 1])],
)
def test_in_the_seeds_form_anchors_that_learn_are_positive_and_nothing_else(kind: str, expected: list[int]) -> None:
    """The first's anchor learns though .39 of it is within; .45 is of no kind; then all, and .39 without an anchor."""
    boxes = torch.cat([SHARED, SHARED[:, :1]], dim=1)
    learns = torch.tensor([[True, False, False, False]])
    found = of_kind(instances_of(boxes), kind, (0.4, 0.5), OBJECTS, learns)
    assert found.real.int().tolist() == [expected]


# --- GID: the terms ---


def features_of(teacher: Tensor, student: Tensor, real: list[int] | None = None) -> gid.RoiFeatures:
    kept = torch.ones(len(teacher), dtype=torch.bool) if real is None else torch.tensor(real) > 0
    return gid.RoiFeatures(teacher, student, kept)


def test_the_feature_terms_by_hand() -> None:
    """One box, 256 channels, all differences .1, times 5e-4: 16 and 2.56."""
    features = features_of(torch.zeros(1, 256, 10, 10), torch.full((1, 256, 10, 10), 0.1))
    assert 5e-4 * gid.feature_loss(features, "paper").item() == pytest.approx(0.008, rel=1e-5)
    assert 5e-4 * gid.feature_loss(features, "seed").item() == pytest.approx(0.00128, rel=1e-5)


def test_the_gradient_of_distances_is_that_of_their_formula() -> None:
    rows = noise(4, 7, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(gid._Distances.apply, rows)
    equal = torch.zeros(3, 7, requires_grad=True)  # a distance of 0 has no direction
    (found,) = torch.autograd.grad(gid._Distances.apply(equal).sum(), equal)
    assert torch.equal(found, torch.zeros(3, 7))


def test_the_relation_by_hand() -> None:
    """Distances 5, 8, 5 of mean 6, and 2, 4, 2 of mean 8/3, whatever the student's scale."""
    teacher = torch.tensor([[0.0, 0], [3, 4], [0, 8]]).view(3, 2, 1, 1)
    student = torch.tensor([[0.0, 0], [2, 0], [4, 0]]).view(3, 2, 1, 1)
    for scale in (1, 37):
        assert gid.relation_loss(features_of(teacher, scale * student)).item() == pytest.approx(1 / 144, rel=1e-5)
    assert 40 * gid.relation_loss(features_of(teacher, student)).item() == pytest.approx(0.2778, abs=1e-4)
    # As absolute differences: 1/12, 1/6 and 1/12 of five sixths, eight sixths, .75 and 1.5.
    assert gid.relation_loss(features_of(teacher, student), beta=0.0).item() == pytest.approx(1 / 9, rel=1e-5)


def relation_as_written(teacher: np.ndarray, student: np.ndarray) -> float:
    def matrix(rows: np.ndarray) -> np.ndarray:
        count = len(rows)
        distances = np.array([[np.linalg.norm(a - b) for b in rows] for a in rows])
        return distances / (distances.sum() / (count * (count - 1)))

    difference = np.abs(matrix(teacher) - matrix(student))
    return float(
        np.where(difference < 1, difference**2 / 2, difference - 0.5).sum() / (len(teacher) ** 2 - len(teacher))
    )


def test_feature_and_relation_equal_their_formulas_in_float64() -> None:
    teacher, student = noise(6, 8, 3, 3), noise(6, 8, 3, 3, seed=1)
    features, real = features_of(teacher, student, [1, 1, 0, 1, 1, 1]), [0, 1, 3, 4, 5]
    own, other = (each.double().numpy().reshape(6, -1)[real] for each in (student, teacher))
    norms = np.linalg.norm(own - other, axis=1).mean()
    assert gid.feature_loss(features, "paper").item() == pytest.approx(norms, rel=1e-5)
    assert gid.feature_loss(features, "seed").item() == pytest.approx(((own - other) ** 2).sum() / 9 / 5, rel=1e-5)
    assert gid.relation_loss(features).item() == pytest.approx(relation_as_written(other, own), rel=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_instances_have_finite_terms_in_the_graph(count: int) -> None:
    student = noise(3, 4, 2, 2).requires_grad_()
    features = features_of(noise(3, 4, 2, 2, seed=1), student, [1] * count + [0] * (3 - count))
    relation, features = gid.relation_loss(features), gid.feature_loss(features, "paper")
    assert relation.item() == 0 and features.isfinite() and (features.item() == 0) == (count == 0)
    (relation + features).backward()
    assert student.grad is not None and student.grad.isfinite().all()
    equal = features_of(student.detach(), student)
    (gid.relation_loss(equal) + gid.feature_loss(equal, "paper")).backward()
    assert student.grad.isfinite().all()


def test_a_look_is_an_aligned_average_of_its_own_map() -> None:
    """Of a ramp along x with two cells a look: bilinear at the middle of each half; the other map is wider."""
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    maps, scales = [ramp, torch.ones(1, 2, 8, 8)], [1 / 8, 1 / 16]
    rois = torch.tensor([[0, 16.0, 16, 48, 48], [0, 0, 0, 64, 64]])
    found = gid.roi_features(maps, scales, torch.tensor([0, 1]), rois, 2)
    # x from 2 to 6 cells, whose middles lie at whole numbers less .5: halves about 3 and 5.
    torch.testing.assert_close(found[0, 0], torch.tensor([[2.5, 4.5], [2.5, 4.5]]))
    assert (found[0, 1] == 0).all() and (found[1] == 1).all()


def test_a_look_is_the_same_where_boxes_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where choosing would mean waiting for the device."""
    maps, scales = [noise(2, 3, 16, 16), noise(2, 5, 8, 8, seed=1)], [1 / 8, 1 / 16]
    corner = 60 * torch.rand(6, 2, generator=torch.Generator().manual_seed(2))
    rois = torch.cat([torch.tensor([[0.0]] * 3 + [[1.0]] * 3), corner, corner + 50], dim=1)
    level = torch.tensor([0, 1, 0, 1, 1, 0])
    expected = gid.roi_features(maps, scales, level, rois, 4)
    monkeypatch.setattr(gid, "_CHOOSES_ON", ())
    torch.testing.assert_close(gid.roi_features(maps, scales, level, rois, 4), expected)
    assert expected.shape == (6, 5, 4, 4) and (expected[level == 0, 3:] == 0).all()


@pytest.mark.parametrize("divergence", [sigmoid_divergence, softmax_divergence])
def test_responses_are_the_same_where_anchors_are_not_chosen(divergence: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: losses and gradients, and a broken number of an anchor that learns nothing breaks neither."""
    student, teacher = noise(2, 9, 5), noise(2, 9, 5, seed=1)
    learns = torch.zeros(2, 9, dtype=torch.bool)
    learns[0, 2] = learns[1, 4:7] = True
    teacher[0, 3, 1], teacher[1, 0] = torch.nan, torch.inf

    def found() -> tuple[Tensor, Tensor]:
        own = student.clone().requires_grad_()
        counted, *rows = gid.rows_of(learns, own, teacher)
        loss = gid.response_sums(divergence(*rows), counted)
        counted, *rows = gid.rows_of(learns, own[..., :4], teacher[..., :4])
        loss = loss + gid.response_sums(gid.offset_distance(*rows, 0), counted)
        loss.backward()
        assert own.grad is not None
        return loss.detach(), own.grad

    loss, gradient = found()
    assert loss > 0 and gradient[learns].abs().min() > 0 and (gradient[~learns] == 0).all()
    monkeypatch.setattr(gid, "_CHOOSES_ON", ())
    assert len(gid.rows_of(learns, student)[0]) == 18
    torch.testing.assert_close(found(), (loss, gradient))


def test_levels_by_area() -> None:
    """P3 below 224 pixels, P7 only from 1792."""
    sides = torch.tensor([1.0, 223, 224, 447, 448, 895, 896, 1791, 1792, 9000])
    boxes = torch.cat([torch.zeros(10, 2), sides.view(-1, 1).repeat(1, 2)], dim=1)
    assert by_area(boxes, 3, 7).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert SSD300_PARTS.anchors is not None
    sides = torch.tensor([21.0, 44, 46, 98, 100, 160, 210, 299])
    boxes = torch.cat([torch.zeros(8, 2), sides.view(-1, 1).repeat(1, 2)], dim=1)
    assert SSD300_PARTS.anchors.level_of(boxes).tolist() == [0, 0, 1, 1, 2, 3, 4, 5]


def test_responses_equal_their_formulas_in_float64() -> None:
    student, teacher = noise(7, 5), noise(7, 5, seed=1)
    own, other = (1 / (1 + np.exp(-each.double().numpy())) for each in (student, teacher))
    expected = -(other * np.log(own) + (1 - other) * np.log(1 - own)).sum(1)
    entropy = -(other * np.log(other) + (1 - other) * np.log(1 - other)).sum(1)
    np.testing.assert_allclose(sigmoid_divergence(student, teacher).numpy(), expected - entropy, rtol=1e-5, atol=1e-6)
    assert sigmoid_divergence(teacher, teacher).abs().max() < 1e-6
    own, other = (np.exp(each.double().numpy()) for each in (student, teacher))
    own, other = own / own.sum(1, keepdims=True), other / other.sum(1, keepdims=True)
    expected = (other * np.log(other / own)).sum(1)
    np.testing.assert_allclose(softmax_divergence(student, teacher).numpy(), expected, rtol=1e-5, atol=1e-6)
    each, all_count = sigmoid_divergence(student, teacher), torch.ones(7, dtype=torch.bool)
    assert gid.response_sums(each, all_count).item() == pytest.approx(each.mean().item(), rel=1e-6)
    assert gid.response_sums(each, torch.arange(7) < 2).item() == pytest.approx(each[:2].mean().item(), rel=1e-6)
    assert gid.response_sums(torch.zeros(0), all_count[:0]).item() == 0 == gid.response_sums(each, ~all_count).item()
    distance = (student[:, :4] - teacher[:, :4]).abs().sum(dim=1)
    torch.testing.assert_close(gid.offset_distance(student[:, :4], teacher[:, :4], 0), distance)
    own, other = (each[:, :4].double().numpy() for each in (student, teacher))
    apart = np.abs(own - other)
    smooth = np.where(apart < 0.1, apart**2 / 0.2, apart - 0.05).sum(axis=1)
    found = gid.offset_distance(student[:, :4], teacher[:, :4], 0.1)
    np.testing.assert_allclose(found.double().numpy(), smooth, rtol=1e-5)
    by_hand = gid.offset_distance(torch.tensor([[0.05, 0.2, 0, 0]]), torch.zeros(1, 4), 0.1)
    assert by_hand.item() == pytest.approx(0.05**2 / 0.2 + 0.15, rel=1e-6)


def test_chosen_boxes_are_learned_by_the_anchors_of_the_detectors_own_matcher() -> None:
    corner = 60 * torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(3))
    boxes = torch.cat([corner, corner + 10 + 40 * torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(4))], 2)
    real = torch.tensor([[True, True, True], [True, False, False]])
    maps = {name: torch.zeros(2, 1, 128 // stride, 128 // stride) for name, stride in
            (("p3", 8), ("p4", 16), ("p5", 32), ("p6", 64), ("p7", 128))}  # fmt: skip
    assert RETINANET.anchors is not None and SSD300_PARTS.anchors is not None
    anchors = RETINANET.anchors.anchors_ltrb_px(maps, torch.zeros(2, 3, 128, 128))
    targets = Targets(boxes[real], torch.ones(4, dtype=torch.int64), (3, 1), ((128, 128),) * 2)
    expected = match(targets, anchors, low=0.4, high=0.5, each_box_learns=True) >= 0
    assert torch.equal(RETINANET.anchors.learns(boxes, real, anchors), expected) and expected.sum() > 8
    assert not RETINANET.anchors.learns(boxes + 9000, real, anchors).any()
    defaults = SSD300_PARTS.anchors.anchors_ltrb_px({}, torch.zeros(2, 3, 300, 300))
    rows = [match_defaults(boxes[i][real[i]] / 300, defaults / 300) >= 0 for i in range(2)]
    assert torch.equal(SSD300_PARTS.anchors.learns(boxes, real, defaults), torch.stack(rows))


# --- CrossKD ---


def test_crossed_features_have_the_teachers_mean_and_deviation() -> None:
    student, teacher = 5 * noise(2, 3, 4, 4) + 2, 0.3 * noise(2, 3, 4, 4, seed=1) - 1
    made = crosskd.aligned(student, teacher)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(made, dim=(0, 2, 3)), moment(teacher, dim=(0, 2, 3)), **CLOSE)
    constant = torch.full((2, 3, 4, 4), 4.0, requires_grad=True)
    loss = crosskd.aligned(constant, teacher).square().sum()
    loss.backward()
    assert loss.isfinite() and constant.grad is not None and constant.grad.isfinite().all()


def test_the_crossed_terms_equal_their_formulas_in_float64() -> None:
    logits, of_teacher = noise(1, 6, 3), noise(1, 6, 3, seed=1)
    counted, positives = torch.tensor([[True] * 5 + [False]]), torch.tensor(2)
    p, t = (1 / (1 + np.exp(-each.double().numpy())) for each in (logits, of_teacher))
    expected = (-(t * np.log(p) + (1 - t) * np.log(1 - p)) * np.abs(p - t))[0, :5].sum() / 2
    assert crosskd.class_loss(logits, of_teacher, counted, positives).item() == pytest.approx(expected, rel=1e-5)

    corner = 30 * torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(1))
    boxes = torch.cat([corner, corner + 20], dim=2)
    total = 0.0
    for i in range(5):
        a, b = boxes[0, i].double(), boxes[1, i].double()
        iou = float(pairwise_iou(a[None], b[None]))
        around = float((torch.maximum(a, b)[2:] - torch.minimum(a, b)[:2]).prod())
        union = 800 / (1 + iou)  # two squares of 400
        total += (1 - iou + (around - union) / around) * t[0, i].max()
    found = crosskd.box_loss(boxes[:1], boxes[1:], of_teacher, counted, positives)
    assert found.item() == pytest.approx(total / 2, rel=1e-5)
    assert crosskd.class_loss(logits, of_teacher, counted, torch.tensor(0)).isfinite()
