"""From which probability on a class is predicted: chosen on the validation part, kept with the
model. `N` rows, `K` classes, `S` candidates.

A *decision* is a dict, in model.json and scores.json: `target`, of two classes the one whose
probability is compared; `thresholds`, {class: probability}; `chosen_by`, and on how many `n`
recordings. None: the most probable class, or of several those above one half.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.metrics import RESAMPLED

Decision = Mapping[str, Any] | None


def decide(
    log_probs: np.ndarray, classes: Sequence[str], decision: Decision, multi_label: bool = False
) -> np.ndarray:
    """The predicted classes. Shape: (N, K) -> (N,) int64, or (N, K) bool if `multi_label`."""
    if not decision:
        return np.exp(log_probs) >= 0.5 if multi_label else log_probs.argmax(axis=1)
    thresholds = decision["thresholds"]
    if multi_label:
        return np.exp(log_probs) >= [thresholds[name] for name in classes]
    target = list(classes).index(decision["target"])
    said = np.exp(log_probs[:, target]) >= thresholds[decision["target"]]
    return np.where(said, target, 1 - target)


def learn(
    labels: np.ndarray, log_probs: np.ndarray, classes: Sequence[str], target: int, metric: str
) -> Decision:
    """The decision that is best by `metric` on these rows, recordings of a validation part.

    Several classes: by the F1 of each. Two: `metric` is accuracy, balanced_accuracy, macro_f1, or
    eer, where both errors are equally frequent. More of which one is true, rows of one class alone,
    or none: None.
    """
    if not len(labels) or (labels.ndim == 1 and (len(classes) != 2 or len(set(labels)) < 2)):
        return None
    probability, n = np.exp(log_probs), len(labels)
    if labels.ndim == 2:
        chosen = {
            name: best_threshold(labels[:, k], probability[:, k], "f1")
            for k, name in enumerate(classes)
        }
        return {"thresholds": chosen, "chosen_by": "f1", "n": n}
    name = classes[target]
    chosen = {name: best_threshold(labels == target, probability[:, target], metric)}
    return {"target": name, "thresholds": chosen, "chosen_by": metric, "n": n}


def best_threshold(truth: np.ndarray, probability: np.ndarray, metric: str) -> float:
    """Of one half and the middles between neighbouring probabilities the best, of equals the
    nearest to one half. Shape: (N,) bool, (N,)."""
    values = np.unique(probability)
    candidates = np.append(0.5, (values[1:] + values[:-1]) / 2)
    order = np.argsort(probability)
    misses = np.append(0, np.cumsum(truth[order]))  # of all below the candidate
    below = np.searchsorted(probability[order], candidates)
    lost, passed = misses[below], below - misses[below]
    support = np.array([(~truth).sum(), truth.sum()])
    hits = np.stack([passed, support[1] - lost], axis=1)
    guesses = np.stack([below, len(truth) - below], axis=1)
    if metric == "f1":
        value = 2 * hits[:, 1] / np.maximum(support[1] + guesses[:, 1], 1)
    elif metric == "eer":
        value = -np.abs(lost / support[1] - (support[0] - passed) / support[0])
    else:
        value = RESAMPLED[metric](hits.astype(float), support.astype(float), guesses.astype(float))
    equal = candidates[np.isclose(value, value.max(), rtol=0, atol=1e-12)]
    return float(equal[np.abs(equal - 0.5).argmin()])


def told(decision: Decision) -> str:
    """A decision in words."""
    if not decision:
        return "Decisions take the most probable class, or of several those above one half."
    values = ", ".join(f"{name} from {value:.3g}" for name, value in decision["thresholds"].items())
    return (
        f"Decisions: {values} on, by {decision['chosen_by']} over {decision['n']} recordings of "
        "the validation part."
    )
