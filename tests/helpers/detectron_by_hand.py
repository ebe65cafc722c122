"""Detectron's rules in a few lines of numpy each, with its closed ranges of pixels: width = right - left + 1."""

import numpy as np

Array = np.ndarray


def widths(boxes: Array) -> Array:
    return boxes[:, 2] - boxes[:, 0] + 1


def heights(boxes: Array) -> Array:
    return boxes[:, 3] - boxes[:, 1] + 1


def iou(boxes: Array, others: Array) -> Array:
    width = np.minimum(boxes[:, None, 2], others[:, 2]) - np.maximum(boxes[:, None, 0], others[:, 0]) + 1
    height = np.minimum(boxes[:, None, 3], others[:, 3]) - np.maximum(boxes[:, None, 1], others[:, 1]) + 1
    both = width.clip(0) * height.clip(0)
    areas, other_areas = widths(boxes) * heights(boxes), widths(others) * heights(others)
    return both / (areas[:, None] + other_areas - both)


def encoded(boxes: Array, gt: Array, weights: tuple[float, ...]) -> Array:
    x, y = boxes[:, 0] + 0.5 * widths(boxes), boxes[:, 1] + 0.5 * heights(boxes)
    gt_x, gt_y = gt[:, 0] + 0.5 * widths(gt), gt[:, 1] + 0.5 * heights(gt)
    return np.stack(
        [
            weights[0] * (gt_x - x) / widths(boxes),
            weights[1] * (gt_y - y) / heights(boxes),
            weights[2] * np.log(widths(gt) / widths(boxes)),
            weights[3] * np.log(heights(gt) / heights(boxes)),
        ],
        axis=1,
    )


def decoded(boxes: Array, deltas: Array, weights: tuple[float, ...]) -> Array:
    dx, dy, dw, dh = (deltas / np.array(weights)).T
    dw, dh = (np.minimum(each, np.log(1000 / 16)) for each in (dw, dh))
    x = dx * widths(boxes) + boxes[:, 0] + 0.5 * widths(boxes)
    y = dy * heights(boxes) + boxes[:, 1] + 0.5 * heights(boxes)
    width, height = np.exp(dw) * widths(boxes), np.exp(dh) * heights(boxes)
    return np.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width - 1, y + 0.5 * height - 1], axis=1)


def clipped(boxes: Array, width: float, height: float) -> Array:
    return np.stack([boxes[:, side].clip(0, (height if side % 2 else width) - 1) for side in range(4)], axis=1)


def nms(boxes: Array, scores: Array, threshold: float) -> list[int]:
    """Places that stay, best first; what overlaps a better one by the threshold itself falls."""
    left, kept = list(np.argsort(-scores, kind="stable")), []
    while left:
        best = left.pop(0)
        kept.append(int(best))
        overlap = iou(boxes[[best]], boxes[left])[0] if left else []
        left = [other for other, value in zip(left, overlap, strict=True) if value < threshold]
    return kept


def half_open(boxes: Array) -> Array:
    return boxes + np.array([0, 0, 1, 1])


def closed(boxes: Array) -> Array:
    return boxes - np.array([0, 0, 1, 1])


def soft_nms(boxes: Array, scores: Array, threshold: float, method: str, sigma: float) -> list[tuple[int, float]]:
    """(place, score) of those that are taken, in the order in which they are."""
    now, left, taken = scores.astype(np.float32).copy(), list(range(len(scores))), []
    while left:
        best = max(left, key=lambda place: now[place])  # the first of equal ones
        left.remove(best)
        taken.append((best, float(now[best])))
        for other in list(left):
            overlap = iou(boxes[[best]], boxes[[other]])[0, 0]
            if overlap <= 0:
                continue
            soft = {"linear": 1 - overlap, "hard": 0.0}.get(method, 0.0) if overlap > threshold else 1.0
            now[other] *= np.exp(-(overlap**2) / sigma) if method == "gaussian" else soft
            if now[other] < 1e-4:
                left.remove(other)
    return taken


def voted(box: Array, score: float, boxes: Array, scores: Array, threshold: float, rule: str, beta: float) -> Array:
    """A box (4) that was left and its score, after the votes of all: 5 numbers."""
    overlaps = iou(box[None], boxes)[0]
    votes = overlaps >= threshold
    weights = scores[votes]
    mean = np.average(boxes[votes], axis=0, weights=weights)
    both = np.stack([weights, 1 - weights])
    with np.errstate(divide="ignore"):
        tempered = np.exp(np.log(both / both.max(axis=0)) / beta)
    new_score = {
        "ID": score,
        "TEMP_AVG": (tempered[0] / tempered.sum(axis=0)).mean(),
        "AVG": weights.mean(),
        "IOU_AVG": np.average(weights, weights=overlaps[votes]),
        "GENERALIZED_AVG": np.mean(weights**beta) ** (1 / beta),
        "QUASI_SUM": weights.sum() / len(weights) ** beta,
    }[rule]
    return np.array([*mean, new_score])
