"""Bootstrap intervals of all scores: whole units are drawn, and ranks are counted by weight.

Shapes: `N` rows, `K` classes, `U` units (recordings or groups), `R` resamples.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from toolkit.metrics import RESAMPLED, bootstrap, draw
from toolkit.predictions import Predictions

Interval = list[float] | None
Noted: TypeAlias = Mapping[str, Any] | None
BLOCK = 4_000_000  #: weights that are drawn at a time


def has_groups(rows: Predictions) -> bool:
    """Whether some recordings share a group, and there are several groups to draw from."""
    return 1 < len(np.unique(units_of(rows, "group"))) < len(rows.labels)


def units_of(rows: Predictions, unit: str) -> np.ndarray:
    """The name of what each row is drawn with; a recording without a group is one by itself."""
    alone = rows.group == ""
    return np.where((unit == "recording") | alone, rows.recording, rows.group)


def intervals(
    rows: Predictions, unit: str, n: int = 2000, noted: Noted = None
) -> dict[str, Interval]:
    """The 95 % percentile interval of each score over `n` resamples of whole units; `noted` is what
    scores.json has as `detection`.

    Resamples in which a score is not defined, as without one of two classes, are left out; None
    where it is defined in none.
    """
    units = units_of(rows, unit)
    found: dict[str, Interval] = {}
    if not rows.is_multi_label:
        for name in RESAMPLED:
            found[name] = list(bootstrap(rows.labels, rows.predicted, units, name, n))
        if len(rows.classes) != 2:
            return found
    values: dict[str, list[np.ndarray]] = {}
    for weights in resamples(units, n):
        for name, value in weighted(rows, weights, noted).items():
            values.setdefault(name, []).append(value)
    return found | {name: percentiles(np.concatenate(v)) for name, v in values.items()}


def percentiles(values: np.ndarray) -> Interval:
    """2.5 and 97.5 % of the values that are defined."""
    values = values[~np.isnan(values)]
    return np.percentile(values, [2.5, 97.5]).tolist() if len(values) else None


def resamples(units: np.ndarray, n: int, seed: int = 0) -> Iterator[np.ndarray]:
    """(R, N) float64, some at a time: how often each row is in each of `n` resamples."""
    _, unit = np.unique(units, return_inverse=True)
    unit, rng = unit.reshape(-1), np.random.default_rng(seed)
    block = max(1, BLOCK // len(unit))
    for i in range(0, n, block):
        yield draw(rng, min(block, n - i), int(unit.max()) + 1)[:, unit]


def sampled(rows: Predictions, weights: np.ndarray, noted: Noted = None) -> dict[str, np.ndarray]:
    """Every score that tables show, for each row of weights (R, N): (R,), NaN where undefined."""
    if rows.is_multi_label:
        return weighted_tags(rows, weights)
    classes = np.arange(len(rows.classes))
    labels, predicted = rows.labels[:, None] == classes, rows.predicted[:, None] == classes
    counts = [weights @ which for which in (labels & predicted, labels, predicted)]
    found = {name: score(*counts) for name, score in RESAMPLED.items()}
    return found | (weighted(rows, weights, noted) if len(classes) == 2 else {})


def weighted(rows: Predictions, weights: np.ndarray, noted: Noted = None) -> dict[str, np.ndarray]:
    """What depends on ranks, for each row of weights (R, N): (R,), NaN where undefined."""
    if rows.is_multi_label:
        return weighted_tags(rows, weights)
    from toolkit import detection

    logs = rows.log_probs
    target, costs = detection.asked(noted, rows.classes)
    score = logs[:, target] - logs[:, 1 - target]
    return detection.weighted(rows.labels == target, score, weights, costs)


def weighted_tags(rows: Predictions, weights: np.ndarray) -> dict[str, Any]:
    """mAP, macro and micro F1 of each resample; a class that it lacks does not count in mAP."""
    labels, predicted = rows.labels.astype(float), rows.predicted.astype(float)
    hits, support = weights @ (labels * predicted), weights @ labels
    guesses = weights @ predicted
    pairs = [(rows.labels[:, k], rows.probabilities[:, k]) for k in range(labels.shape[1])]
    each = np.stack([average_precision(*pair, weights) for pair in pairs], axis=1)
    defined = ~np.isnan(each)
    count = defined.sum(axis=1)
    total = np.where(defined, each, 0).sum(axis=1)
    both = np.maximum(support + guesses, 1e-12)
    return {
        "average_precision": np.where(count > 0, total / np.maximum(count, 1), np.nan),
        "macro_f1": (2 * hits / both).mean(axis=1),
        "micro_f1": 2 * hits.sum(axis=1) / both.sum(axis=1),
    }


def average_precision(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of each resample: precision, weighted by the step of recall, over falling thresholds; rows
    of one score come together. Shape: (N,) bool, (N,), (R, N) -> (R,)."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.diff(score[order]) != 0, True)
    said = np.cumsum(weights[:, order], axis=1)[:, ends]
    hits = np.cumsum(weights[:, order] * truth[order], axis=1)[:, ends]
    precision = hits / np.maximum(said, 1e-12)
    steps = np.diff(hits, axis=1, prepend=0)
    total = hits[:, -1]
    found = (precision * steps).sum(axis=1) / np.maximum(total, 1e-12)
    return np.where((total > 0) & (total < said[:, -1]), found, np.nan)
