"""Scores of two classes as detection has them: a target is accepted or missed, anything else
rejected or a false alarm. The score is the target's log-odds.

Shapes: `N` rows, `R` resamples, `P` points of a curve: thresholds, from rejecting all to none.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Costs(NamedTuple):
    """Of the detection cost function; the defaults are those of ASVspoof 5."""

    prior: float = 0.05  #: of what is no target: a spoof
    miss: float = 1.0
    false_alarm: float = 10.0


def asked(noted: Mapping[str, Any] | None, classes: Sequence[str]) -> tuple[int, Costs]:
    """The number of the target and the costs that scores.json notes as `detection`; where it notes
    none, those of `metrics.scores`."""
    return (classes.index(noted["target"]), Costs(**noted["costs"])) if noted else (1, Costs())


class Curve(NamedTuple):
    """Error rates over falling thresholds, the first above all scores, (R, P) each."""

    misses: np.ndarray
    false_alarms: np.ndarray


def accepted(
    target: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weight of targets and of others that score at least as high as each of the scores, from
    the highest on; rows of one score come together. Shape: (N,) bool, (N,), (R, N) -> 2 x (R, P).
    """
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.diff(score[order]) != 0, True)
    hits, others = (
        np.cumsum(weights[:, order] * truth[order], axis=1)[:, ends] for truth in (target, ~target)
    )
    return hits, others


def curve(target: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """Misses and false alarms at each threshold, for each row of weights; NaN where one class is
    missing. Shape: (N,) bool, (N,), (R, N), by default one row of ones."""
    rates = []
    for passed in accepted(target, score, np.ones((1, len(score))) if weights is None else weights):
        total = passed[:, -1:]
        share = np.divide(passed, total, out=np.full_like(passed, np.nan), where=total > 0)
        rates.append(np.concatenate([0 * share[:, :1], share], axis=1))
    return Curve(1 - rates[0], rates[1])


def equal_error_rate(found: Curve) -> np.ndarray:
    """Where both rates are equal, linear between the points of the curve. Shape: -> (R,)."""
    gap = found.misses - found.false_alarms  # falls from 1 to -1
    after = np.argmax(gap <= 0, axis=1)
    rows = np.arange(len(gap))
    above, below = gap[rows, after - 1], gap[rows, after]
    share = above / np.where(above == below, 1, above - below)
    rates = found.false_alarms
    value = rates[rows, after - 1] + share * (rates[rows, after] - rates[rows, after - 1])
    return np.where(np.isnan(gap[:, -1]), np.nan, value)


def min_dcf(found: Curve, costs: Costs = Costs()) -> np.ndarray:  # noqa: B008
    """The least detection cost over all thresholds, over that of the better of accepting all and
    rejecting all: 0 is perfect, 1 is worth nothing. Shape: -> (R,)."""
    miss, alarm = costs.miss * (1 - costs.prior), costs.false_alarm * costs.prior
    return (miss * found.misses + alarm * found.false_alarms).min(axis=1) / min(miss, alarm)


def roc_auc(found: Curve) -> np.ndarray:
    """The area under hits over false alarms. Shape: -> (R,)."""
    hits = 1 - found.misses
    return (np.diff(found.false_alarms, axis=1) * (hits[:, 1:] + hits[:, :-1]) / 2).sum(axis=1)


def weighted(
    target: np.ndarray,
    score: np.ndarray,
    weights: np.ndarray,
    costs: Costs = Costs(),  # noqa: B008
) -> dict[str, np.ndarray]:
    """EER, min-DCF and ROC AUC for each row of weights: (R,), NaN where undefined."""
    found = curve(target, score, weights)
    return {
        "eer": equal_error_rate(found),
        "min_dcf": min_dcf(found, costs),
        "roc_auc": roc_auc(found),
    }
