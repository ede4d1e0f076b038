"""Scores where samples have several classes, or none: each class is a question of its own.

Shapes: `N` rows (segments or recordings), `K` classes, `R` recordings.
"""

import numpy as np

from toolkit.metrics import Scores, binary_log, checked, expected_calibration_error, group_means

#: What tables show, the first of them large.
METRICS = {"average_precision": "mAP", "macro_f1": "macro F1", "micro_f1": "micro F1"}


def scores(
    labels: np.ndarray, log_probs: np.ndarray, predicted: np.ndarray | None = None, bins: int = 15
) -> Scores:
    """Every score of `log_probs` (N, K), each class for itself, against `labels` (N, K) bool.

    `predicted` (N, K) bool are the decisions, by default those from one half on. `loss` is the mean
    binary cross entropy, `accuracy` the share of rows that are right in all classes,
    `balanced_accuracy` the mean over classes of half the hit rate and half the rate of rightly
    absent. `average_precision` is mAP, and it and `roc_auc` are means over the classes that some
    rows have and others lack; `class_average_precision` has one value a class, None where
    undefined. `ece` is that of all N K decisions.
    """
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
    from sklearn.metrics import precision_recall_fscore_support as by_class

    _, log_probs = checked(labels, log_probs)
    present, absent = binary_log(log_probs)
    predicted = np.exp(present) >= 0.5 if predicted is None else predicted  # as in decision.decide
    precision, recall, f1, support = by_class(labels, predicted, average=None, zero_division=0)
    defined = labels.any(axis=0) & ~labels.all(axis=0)
    some, ranked = labels[:, defined], (present - absent)[:, defined]
    each = np.full(labels.shape[1], None)
    if defined.any():
        found = average_precision_score(some, ranked, average=None)
        each[defined] = np.atleast_1d(found).tolist()
    specificity = (~labels & ~predicted).sum(0) / np.maximum((~labels).sum(0), 1)
    both = np.stack([absent, present], axis=2).reshape(-1, 2)
    return {
        "n": len(labels),
        "loss": float(-np.where(labels, present, absent).mean()),
        "accuracy": float((labels == predicted).all(axis=1).mean()),
        "balanced_accuracy": float(((recall + specificity) / 2)[defined].mean())
        if defined.any()
        else 0.0,
        "macro_f1": float(f1.mean()),
        "micro_f1": float(f1_score(labels, predicted, average="micro", zero_division=0)),
        "ece": expected_calibration_error(labels.reshape(-1).astype(int), both, bins),
        "roc_auc": float(roc_auc_score(some, ranked, average="macro")) if defined.any() else None,
        "average_precision": float(np.mean(each[defined])) if defined.any() else None,
        "class_average_precision": each.tolist(),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "support": support.astype(int).tolist(),
    }


def pool(log_probs: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`metrics.pool`, each class for itself: (R, K) of the mean log-odds, and the groups."""
    present, absent = binary_log(log_probs)
    mean, order = group_means(present, groups)
    other, _ = group_means(absent, groups)
    return mean - np.logaddexp(mean, other), order
