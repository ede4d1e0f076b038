"""Train, val and test parts made of whole groups.

Shapes: `P` pairs of a recording and a class of it.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def allot(
    labels: np.ndarray, groups: np.ndarray, fractions: Sequence[float], seed: int
) -> np.ndarray:
    """(P,) part numbers: whole groups dealt so that each part has its fraction of every class.

    First each part gets one group of every class that still has a free one, train before the others
    so that it has every class; then the groups, large ones first, go where they bring the
    shares of their classes nearest to `fractions`, in squares weighted by 1 / fraction.
    """
    parts = [n for n, fraction in enumerate(fractions) if fraction > 0]
    weights = class_shares(labels, groups)
    shares: list[list[float]] = np.zeros((len(fractions), labels.max() + 1)).tolist()
    part_of: dict[int, int] = {}

    def cost(group: int, part: int) -> float:
        of, f = shares[part], fractions[part]
        return sum(w * (w + 2 * (of[label] - f)) for label, w in weights[group].items()) / f

    def put(group: int, part: int) -> None:
        part_of[group] = part
        for label, w in weights[group].items():
            shares[part][label] += w

    shuffled = np.random.default_rng(seed).permutation(len(weights)).tolist()
    shuffled.sort(key=lambda group: -sum(weights[group].values()))
    having: dict[int, list[int]] = defaultdict(list)
    for group in shuffled:
        for label in weights[group]:
            having[label].append(group)
    for part in parts:
        for label in sorted(having, key=lambda label: (len(having[label]), label)):
            free = [group for group in having[label] if group not in part_of]
            if shares[part][label] == 0 and free:
                put(min(free, key=lambda group: cost(group, part)), part)
    for group in shuffled:
        if group not in part_of:
            put(group, min(parts, key=lambda part: cost(group, part)))
    return np.array([part_of[group] for group in groups.tolist()], np.int64)


def class_shares(labels: np.ndarray, groups: np.ndarray) -> list[dict[int, float]]:
    """For each group, the share that it holds of each of its classes."""
    totals = np.bincount(labels)
    weights: list[dict[int, float]] = [{} for _ in range(groups.max() + 1)]
    pairs, counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    for group, label, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        weights[group][label] = count / totals[label]
    return weights
