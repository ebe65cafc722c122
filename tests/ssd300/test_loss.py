"""The multibox loss: by hand, and against the ancestors' mining with two sorts."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd.batch import MatchedBatch, Predictions
from ssd.detectors.ssd300.loss import multibox_loss, ssd_losses

NO_IMAGES = torch.zeros(0)
NO_IDS = torch.zeros(0, dtype=torch.int64)


def with_cross_entropy(halvings: list[list[int]], labels: list[list[int]]) -> Tensor:
    """Logits of two classes whose cross-entropy at each default box is halvings x log 2."""
    # The right class has probability 2^-h, the other one the rest; the logarithms of both are logits.
    right = torch.tensor(halvings, dtype=torch.float64).neg().exp2()
    of_class = torch.stack([right, 1 - right], dim=2)
    is_object = torch.tensor(labels)[..., None] > 0
    return torch.where(is_object, of_class.flip(2), of_class).log().float()


def losses(predictions: Predictions, offsets: Tensor, labels: list[list[int]] | Tensor) -> dict[str, Tensor]:
    return multibox_loss(predictions, MatchedBatch(NO_IMAGES, offsets, torch.as_tensor(labels), NO_IDS))


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-6)  # a few roundings of float32


# By hand


def test_one_image_by_hand() -> None:
    labels = [[0, 0, 1, 0, 0, 0]]
    logits = with_cross_entropy([[1, 5, 2, 3, 4, 2]], labels)
    offsets, targets = torch.full((1, 6, 4), 50.0), torch.zeros(1, 6, 4)
    targets[0, 2] = torch.tensor([1.0, 1, 1, 1])
    offsets[0, 2] = torch.tensor([1.5, 3, 1, -1])
    loss = losses(Predictions(offsets, logits), targets, labels)
    # Off by 1/2, 2, 0 and -2: (1/2)^2 / 2 + (2 - 1/2) + 0 + (2 - 1/2). The negatives' 50s do not count.
    assert loss["box"].item() == near(0.125 + 1.5 + 1.5)
    # The positive's 2 and the three hardest of 1, 5, 3, 4, 2.
    assert loss["class"].item() == near((2 + 5 + 4 + 3) * log(2))
    assert loss["box"].shape == loss["class"].shape == ()
    assert loss["box"].dtype == loss["class"].dtype == torch.float32
    assert set(loss) == {"box", "class"}


def test_each_image_counts_by_its_positives_then_the_batch_mean() -> None:
    labels = [[1, 0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0], [0] * 9]
    halvings = [[1, 9, 8, 7, 6, 1, 1, 1, 1], [2, 4, 1, 2, 3, 4, 5, 6, 7], [9] * 9]
    offsets, targets = torch.zeros(3, 9, 4), torch.zeros(3, 9, 4)
    offsets[0, 0, 0], offsets[1, 0, 1], offsets[1, 1, 2] = 2.5, 1.5, 3.5
    loss = losses(Predictions(offsets, with_cross_entropy(halvings, labels)), targets, labels)
    # Smooth L1 of x > 1 is x - 1/2: the images have 2 / 1, (1 + 3) / 2 and 0.
    assert loss["box"].item() == near((2 + 2 + 0) / 3)
    # 1 + (9 + 8 + 7), over 1; 2 + 4 + (7 + 6 + 5 + 4 + 3 + 2), over 2; and 0.
    assert loss["class"].item() == near((25 + 33 / 2 + 0) / 3 * log(2))


def test_more_positives_than_negatives() -> None:
    labels = [[1, 1, 1, 0]]
    logits = with_cross_entropy([[1, 2, 3, 4]], labels)
    loss = losses(Predictions(torch.zeros(1, 4, 4), logits), torch.zeros(1, 4, 4), labels)
    # 9 negatives are wanted and 1 is there; the positives are not counted again for want of others.
    assert loss["class"].item() == near((1 + 2 + 3 + 4) / 3 * log(2))


def test_positives_only() -> None:
    labels = [[1, 1]]
    logits = with_cross_entropy([[1, 2]], labels)
    loss = losses(Predictions(torch.zeros(1, 2, 4), logits), torch.zeros(1, 2, 4), labels)
    assert loss["class"].item() == near((1 + 2) / 2 * log(2))


# Against the ancestors


def random_batch(labels: Tensor, num_classes: int, seed: int) -> tuple[Predictions, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, boxes = labels.shape
    return Predictions(
        offsets=(2 * torch.randn(images, boxes, 4, generator=generator)).requires_grad_(),
        logits=(2 * torch.randn(images, boxes, num_classes, generator=generator)).requires_grad_(),
    ), torch.randn(images, boxes, 4, generator=generator)


def two_sort_losses(predictions: Predictions, targets: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """In float64 and image by image, the ranks of the negatives from two argsorts as in DeepLearningExamples."""
    box_losses, class_losses = [], []
    for offsets, logits, target, label in zip(*predictions, targets, labels, strict=True):
        positive = label > 0
        count = int(positive.sum())
        if count == 0:
            box_losses.append(0 * offsets.double().sum())
            class_losses.append(0 * logits.double().sum())
            continue
        error = (offsets.double() - target)[positive].abs()
        box_losses.append(torch.where(error < 1, error**2 / 2, error - 0.5).sum() / count)
        cross_entropy = -F.log_softmax(logits.double(), dim=1)[torch.arange(len(label)), label]
        rank = torch.where(positive, 0, cross_entropy.detach()).argsort(descending=True).argsort()
        negative = ~positive & (rank < 3 * count)
        class_losses.append(cross_entropy[positive | negative].sum() / count)
    return {"box": torch.stack(box_losses).mean(), "class": torch.stack(class_losses).mean()}


@pytest.mark.parametrize(
    ("images", "boxes", "num_classes", "positive_share"),
    [(4, 200, 5, 0.05), (2, 8732, 81, 0.002), (3, 50, 2, 0.24), (3, 50, 3, 0.5), (3, 40, 4, 0.95), (5, 30, 3, 0.03)],
)
def test_value_and_gradient_are_those_of_two_sorts(
    images: int, boxes: int, num_classes: int, positive_share: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    positive = torch.rand(images, boxes, generator=generator) < positive_share
    labels = torch.where(positive, torch.randint(1, num_classes, (images, boxes), generator=generator), 0)
    assert positive.any()
    predictions, targets = random_batch(labels, num_classes, seed=4)
    ours, theirs = losses(predictions, targets, labels), two_sort_losses(predictions, targets, labels)
    for name in ("box", "class"):
        # float32 against float64.
        torch.testing.assert_close(ours[name].double(), theirs[name], rtol=1e-5, atol=0)
        part = {"box": predictions.offsets, "class": predictions.logits}[name]
        (our_gradient,) = torch.autograd.grad(ours[name], part)
        (their_gradient,) = torch.autograd.grad(theirs[name], part)
        assert torch.equal(our_gradient != 0, their_gradient != 0)  # the same default boxes were chosen
        # Gradients of one box are at most 1 over the number of positives and images; softmax rounds at 1e-7.
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-7)


# Images without positives


def test_no_positives_at_all() -> None:
    labels = torch.zeros(2, 20, dtype=torch.int64)
    predictions, targets = random_batch(labels, 3, seed=5)
    loss = losses(predictions, targets, labels)
    assert loss["box"].item() == loss["class"].item() == 0
    # A rank with such a batch must run backward like the others.
    gradients = torch.autograd.grad(loss["box"] + loss["class"], [predictions.offsets, predictions.logits])
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_an_image_without_positives_learns_nothing_beside_one_that_does() -> None:
    labels = torch.zeros(2, 20, dtype=torch.int64)
    labels[1, 3] = 2
    predictions, targets = random_batch(labels, 3, seed=6)
    loss = losses(predictions, targets, labels)
    alone = losses(Predictions(*(part[1:] for part in predictions)), targets[1:], labels[1:])
    for name in ("box", "class"):
        assert loss[name].item() == near(alone[name].item() / 2)
    for gradient in torch.autograd.grad(loss["box"] + loss["class"], [predictions.offsets, predictions.logits]):
        assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
        assert gradient[1].any() and gradient.isfinite().all()


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_predictions_are_computed_in_float32(dtype: torch.dtype) -> None:
    labels = torch.zeros(2, 300, dtype=torch.int64)
    labels[:, ::40] = 1
    predictions, targets = random_batch(labels, 4, seed=7)
    half = Predictions(*(part.detach().to(dtype) for part in predictions))
    loss = losses(half, targets, labels)
    in_float32 = losses(Predictions(*(part.float() for part in half)), targets, labels)
    for name in ("box", "class"):
        assert loss[name].dtype == torch.float32
        assert torch.equal(loss[name], in_float32[name])


def test_sums_beyond_float16_are_finite() -> None:
    offsets = torch.full((1, 8, 4), 30000.0, dtype=torch.float16)
    loss = losses(Predictions(offsets, torch.zeros(1, 8, 2).half()), torch.zeros(1, 8, 4), [[1] + [0] * 7])
    # 30000 is a float16; 4 x (30000 - 1/2) is beyond its 65504.
    assert loss["box"].item() == 4 * 29999.5
    # Of two equal logits the cross-entropy is log 2: the positive and three negatives.
    assert loss["class"].item() == near(4 * log(2))


# What the loop calls


def test_ssd_losses_asks_the_model() -> None:
    labels = torch.zeros(2, 20, dtype=torch.int64)
    labels[:, 4] = 1
    predictions, targets = random_batch(labels, 3, seed=8)

    class Model(nn.Module):
        def forward(self, images: Tensor) -> Predictions:
            return Predictions(images * predictions.offsets, images * predictions.logits)

    batch = MatchedBatch(torch.tensor(0.5), targets, labels, NO_IDS)
    expected = multibox_loss(Predictions(0.5 * predictions.offsets, 0.5 * predictions.logits), batch)
    loss = ssd_losses(Model(), batch)
    assert torch.equal(loss["box"], expected["box"]) and torch.equal(loss["class"], expected["class"])
