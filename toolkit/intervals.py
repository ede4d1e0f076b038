"""Bootstrap intervals of all scores: whole units are drawn, and ranks are counted by weight.

Shapes: `N` rows, `K` classes, `U` units (recordings or groups), `R` resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from shards.errors import UserError
from toolkit import detection
from toolkit.metrics import Scorer, counted, resampled
from toolkit.predictions import Predictions

RESAMPLES = 2000
Interval = list[float] | None
Noted: TypeAlias = Mapping[str, Any] | None


def chosen_unit(rows: Predictions, asked: str) -> str:
    """What resamples of recordings draw. `auto`: groups, where some recordings share one and there
    are several to draw from.

    Raises:
        UserError: no such unit.
    """
    if asked not in ("auto", "recording", "group"):
        raise UserError(f"--bootstrap_unit={asked}: expected recording or group, or auto")
    if asked != "auto":
        return asked
    grouped = 1 < len(np.unique(units_of(rows, "group"))) < len(rows.labels)
    return "group" if grouped else "recording"


def units_of(rows: Predictions, unit: str) -> np.ndarray:
    """The number of what each row is drawn with; a recording without a group is one by itself."""
    alone = rows.group == ""
    names = np.where((unit == "recording") | alone, rows.recording, rows.group)
    return np.unique(names, return_inverse=True)[1].reshape(-1)


def intervals(rows: Predictions, unit: str, noted: Noted = None) -> dict[str, Interval]:
    """The 95 % interval of each score over resamples of whole units (Efron, 1979), see
    `percentiles`; `noted` is what scores.json has as `detection`.

    Resamples in which a score is not defined, as without one of two classes, are left out; None
    where it is defined in none.
    """
    units = units_of(rows, unit)
    found = resampled(scorer(rows, units, noted), units, RESAMPLES)
    return {name: percentiles(values, units) for name, values in found.items()}


def percentiles(values: np.ndarray, units: np.ndarray) -> Interval:
    """The 95 % interval of the defined values: between percentiles 2.5 and 97.5 of resamples of
    very many units, farther out for few, which vary less among themselves than what they are drawn
    from does (Hesterberg, What teachers should know about the bootstrap, The American Statistician
    2015: the expanded percentile interval). `units` are the numbers of what was drawn."""
    from scipy.special import ndtr, stdtrit

    values, n = values[~np.isnan(values)], max(2, int(units.max()) + 1)
    low = 100 * ndtr(-np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975))
    return np.percentile(values, [low, 100 - low]).tolist() if len(values) else None


def scorer(rows: Predictions, units: np.ndarray, noted: Noted = None) -> Scorer:
    """What gives every score that tables show; `units` are those of the rows (N,)."""
    if rows.is_multi_label:
        return lambda drawn: weighted_tags(rows, drawn[:, units])
    by_counts = counted(rows.labels, rows.predicted, units)
    if len(rows.classes) != 2:
        return by_counts
    by_ranks = ranked(rows, noted)
    return lambda drawn: by_counts(drawn) | by_ranks(drawn[:, units])


def averaged(scorers: Sequence[Scorer]) -> Scorer:
    """What gives the means of the scores that all of them give, as those of several seeds."""

    def score(drawn: np.ndarray) -> dict[str, np.ndarray]:
        each = [one(drawn) for one in scorers]
        return {name: np.mean([one[name] for one in each], axis=0) for name in each[0]}

    return score


def ranked(rows: Predictions, noted: Noted) -> Scorer:
    """What gives the scores of two classes that depend on ranks, of weights of the rows (R, N)."""
    logs, (target, costs) = rows.log_probs, detection.asked(noted, rows.classes)
    truth, score = rows.labels == target, logs[:, target] - logs[:, 1 - target]
    return lambda weights: detection.weighted(truth, score, weights, costs)


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
    hits, others = detection.accepted(truth, score, weights)
    precision = hits / np.maximum(hits + others, 1e-12)
    steps, total = np.diff(hits, axis=1, prepend=0), hits[:, -1]
    found = (precision * steps).sum(axis=1) / np.maximum(total, 1e-12)
    return np.where((total > 0) & (others[:, -1] > 0), found, np.nan)
