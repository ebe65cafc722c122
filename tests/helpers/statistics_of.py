"""Two-sample tests of whether two sets of numbers come from one distribution."""

import math

import numpy as np
import torch


def ks_p(a: np.ndarray, b: np.ndarray) -> float:
    """p of the two-sample Kolmogorov-Smirnov test (asymptotic; n x 1 and m x 1 samples of some hundreds at least).

    Ties make it conservative: p is then too large, never too small.
    """
    points = np.sort(np.concatenate([a, b]))
    distance = np.abs(
        np.searchsorted(np.sort(a), points, side="right") / len(a)
        - np.searchsorted(np.sort(b), points, side="right") / len(b)
    ).max()
    scaled = distance * math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    if scaled < 0.2:  # the series below converges slowly there, to 1
        return 1.0
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101)))


def chi_square_p(a: np.ndarray, b: np.ndarray) -> float:
    """p of the chi-square test of homogeneity of two vectors of counts; cells empty in both are left out."""
    counts = np.stack([a, b]).astype(np.float64)
    counts = counts[:, counts.sum(axis=0) > 0]
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.shape[1] - 1
    return torch.special.gammaincc(torch.tensor(freedom / 2.0), torch.tensor(statistic / 2.0)).item()
