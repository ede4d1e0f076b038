"""Scores of a classifier's log-probabilities: scikit-learn where it has them.

Shapes: `N` rows (segments or recordings), `K` classes, `R` recordings.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from shards.errors import UserError
from toolkit import detection
from toolkit.detection import Costs

Scores = dict[str, Any]
#: How often each unit is in each resample (R, U) -> scores (R,), NaN where undefined.
Scorer = Callable[[np.ndarray], dict[str, np.ndarray]]
BLOCK = 4_000_000  #: weights that are drawn at a time

#: What a run can be chosen by: metric -> 1 where higher is better, -1 where lower is.
SIGNS = {
    "macro_f1": 1, "accuracy": 1, "balanced_accuracy": 1, "loss": -1, "roc_auc": 1,
    "average_precision": 1, "ece": -1, "eer": -1, "min_dcf": -1, "micro_f1": 1,
}  # fmt: skip

#: The log of the smallest normal float64; lower log-probabilities count as this, so no score is
#: infinite.
FLOOR = float(np.log(np.finfo(np.float64).tiny))


def scores(
    labels: np.ndarray,
    log_probs: np.ndarray,
    predicted: np.ndarray | None = None,
    ece_bins: int = 15,
    target: int = 1,
    costs: Costs = Costs(),  # noqa: B008
) -> Scores:
    """Every score of `log_probs` (N, K) against `labels` (N,), as plain floats and lists.

    Labels (N, K), where samples may have several classes, are scored by `tagging.scores`.
    `predicted` (N,) are the decisions, by default the most probable class. `n` is N. `loss` is
    the mean negative log-likelihood. `balanced_accuracy` is the mean recall of the classes that
    `labels` has, `macro_f1` the mean over the classes that labels or predictions have: what
    scikit-learn does by default. `precision`, `recall`, `f1` and `support` have one value a
    class (0 where undefined). `roc_auc` and `average_precision` are macro means, one class
    against the rest, None when a class is absent or alone. `ece` is the expected calibration
    error of the most probable class. `eer` and `min_dcf` are there when K is 2, of class `target`.

    Raises:
        UserError: there is nothing to score, or a log-probability is NaN.
    """
    from sklearn.metrics import precision_recall_fscore_support

    if labels.ndim == 2:
        from toolkit import tagging

        return tagging.scores(labels, log_probs, predicted, ece_bins)
    labels, log_probs = checked(labels, log_probs)
    classes = log_probs.shape[1]
    predicted = log_probs.argmax(axis=1) if predicted is None else predicted
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(classes), zero_division=0
    )
    present = support > 0
    seen = present | (np.bincount(predicted, minlength=classes) > 0)
    return {
        "n": len(labels),
        "loss": float(-log_probs[np.arange(len(labels)), labels].mean()),
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[seen].mean()),
        "ece": expected_calibration_error(labels, log_probs, ece_bins),
        **ranking_scores(labels, log_probs, target, costs),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "support": support.astype(int).tolist(),
    }


def checked(labels: np.ndarray, log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int64, log-probabilities as float64, none below FLOOR; raises as `scores` does."""
    if len(labels) == 0:
        raise UserError("0 samples to score: the part is empty; choose another part or fold")
    if bad := int(np.isnan(log_probs).any(axis=1).sum()):
        raise UserError(
            f"{bad} of {len(labels)} predictions are NaN: the weights are; "
            "train again with a lower optim.lr or from an older checkpoint"
        )
    return np.asarray(labels, np.int64), np.maximum(np.asarray(log_probs, np.float64), FLOOR)


def ranking_scores(labels: np.ndarray, log_probs: np.ndarray, target: int, costs: Costs) -> Scores:
    """ROC AUC, average precision, for two classes EER and min-DCF; None where undefined."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    classes = log_probs.shape[1]
    truth = labels[:, None] == np.arange(classes)
    names = ("roc_auc", "average_precision", *(("eer", "min_dcf") if classes == 2 else ()))
    if not (truth.any(axis=0) & ~truth.all(axis=0)).all():
        return dict.fromkeys(names)
    found = {
        "roc_auc": float(roc_auc_score(truth, log_probs, average="macro")),
        "average_precision": float(average_precision_score(truth, log_probs, average="macro")),
    }
    if classes == 2:
        score = log_probs[:, target] - log_probs[:, 1 - target]
        found_curve = detection.curve(labels == target, score)
        found["eer"] = float(detection.equal_error_rate(found_curve)[0])
        found["min_dcf"] = float(detection.min_dcf(found_curve, costs)[0])
    return found


def reliability(
    labels: np.ndarray, log_probs: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean confidence and accuracy of each of `bins` equal, right-closed bins of confidence.

    Confidence is the probability of the most probable class. Empty bins hold 0 in all three.
    """
    confidence = np.exp(log_probs.max(axis=1))
    right = log_probs.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    filled = np.maximum(count, 1)
    mean = np.bincount(bin_of, confidence, minlength=bins) / filled
    return count, mean, np.bincount(bin_of, right, minlength=bins) / filled


def expected_calibration_error(labels: np.ndarray, log_probs: np.ndarray, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy, bins weighted by count (Guo et al., 2017)."""
    count, confidence, accuracy = reliability(labels, log_probs, bins)
    return float((count * np.abs(accuracy - confidence)).sum() / count.sum())


def count_pairs(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How often each (row, column) pair of numbers occurs: int64 of `shape`."""
    flat = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
    return flat.reshape(shape)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) counts: one row a true class, one column a predicted one.

    Of labels (N, K) bool, how often a row that has the one class was given the other.
    """
    if labels.ndim == 2:
        return labels.T.astype(np.int64) @ predicted
    return count_pairs(labels, predicted, (classes, classes))


def pool(log_probs: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean log-probabilities of each group, renormalised: (R, K), and the R groups, ascending.

    `log_probs` is (N, K), `groups` (N,). The mean of logs is the normalised geometric mean: one
    segment that rules a class out counts for more than several that find it likely.
    """
    mean, order = group_means(log_probs, groups)
    mean -= mean.max(axis=1, keepdims=True)
    return mean - np.log(np.exp(mean).sum(axis=1, keepdims=True)), order


def group_means(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each group's rows, none below FLOOR: (R, K), and the R groups, ascending."""
    order, row_of, count = np.unique(groups, return_inverse=True, return_counts=True)
    by_group = np.argsort(row_of.reshape(-1), kind="stable")
    starts = np.concatenate([[0], np.cumsum(count)[:-1]])
    ordered = np.maximum(np.asarray(values, np.float64)[by_group], FLOOR)
    return np.add.reduceat(ordered, starts, axis=0) / count[:, None], order


def binary_log(log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p and log(1 - p), both at least FLOOR, of log p."""
    present = np.clip(np.asarray(log_probs, np.float64), FLOOR, -np.exp(FLOOR))
    return present, np.maximum(np.log(-np.expm1(present)), FLOOR)


def mean_where(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the last axis of `values / weights`, of the places where `weights` is above 0."""
    defined = weights > 0
    ratios = np.divide(values, weights, out=np.zeros_like(values), where=defined)
    return ratios.sum(axis=-1) / np.maximum(defined.sum(axis=-1), 1)


#: metric -> function of hits, support and predicted counts, each (n, K), to n values.
RESAMPLED: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": lambda hits, support, guesses: hits.sum(axis=-1) / support.sum(axis=-1),
    "balanced_accuracy": lambda hits, support, guesses: mean_where(hits, support),
    "macro_f1": lambda hits, support, guesses: mean_where(2 * hits, support + guesses),
}


def counted(labels: np.ndarray, predicted: np.ndarray, unit: np.ndarray) -> Scorer:
    """The scores of RESAMPLED; `labels`, `predicted` and the number of each row's `unit` (N,)."""
    shape = (int(unit.max()) + 1, int(max(labels.max(), predicted.max())) + 1)
    right = labels == predicted
    pairs = (unit[right], labels[right]), (unit, labels), (unit, predicted)
    counts = [count_pairs(one, other, shape).astype(np.float64) for one, other in pairs]

    def score(drawn: np.ndarray) -> dict[str, np.ndarray]:
        sums = [drawn @ one for one in counts]
        return {name: metric(*sums) for name, metric in RESAMPLED.items()}

    return score


def resampled(score: Scorer, unit: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """`score` of `n` samples with replacement of the units, whose number each row has in `unit`
    (N,). Drawn some at a time: 2000 resamples of 100,000 recordings at once would be 1.6 GB."""
    rng, units, block = np.random.default_rng(0), int(unit.max()) + 1, max(1, BLOCK // len(unit))
    found = [score(draw(rng, min(block, n - i), units)) for i in range(0, n, block)]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def draw(rng: np.random.Generator, n: int, units: int) -> np.ndarray:
    """(n, units) float64: how often each unit is in each of `n` samples with replacement."""
    chosen = rng.integers(units, size=(n, units)) + np.arange(n)[:, None] * units
    return np.bincount(chosen.reshape(-1), minlength=n * units).reshape(n, units).astype(float)
