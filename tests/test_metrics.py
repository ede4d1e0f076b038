"""Scores against scikit-learn and against arithmetic done by hand."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from shards.errors import UserError
from toolkit.intervals import percentiles
from toolkit.metrics import (
    confusion,
    counted,
    expected_calibration_error,
    pool,
    reliability,
    resampled,
    scores,
)


def bootstrap(labels, predicted, units, metric, n=2000) -> list[float]:
    """The interval of one score."""
    values = resampled(counted(labels, predicted, units), units, n)[metric]
    return percentiles(values, units) or []


def made_up(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(k, size=n - k)])
    logits = rng.normal(size=(n, k)) + 1.5 * (labels[:, None] == np.arange(k))
    return labels, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("k", [2, 3, 10])
def test_scores_are_those_of_scikit_learn(k: int) -> None:
    labels, log_probs = made_up(300, k)
    found, probs, predicted = scores(labels, log_probs), np.exp(log_probs), log_probs.argmax(axis=1)
    ranked = probs[:, 1] if k == 2 else probs
    one_hot = np.eye(k)[labels]
    assert found["n"] == 300
    assert found["loss"] == pytest.approx(sk.log_loss(labels, probs))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(labels, predicted)
    )
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, ranked, multi_class="ovr"))
    precision = [sk.average_precision_score(one_hot[:, i], probs[:, i]) for i in range(k)]
    assert found["average_precision"] == pytest.approx(np.mean(precision))
    assert found["recall"] == pytest.approx(sk.recall_score(labels, predicted, average=None))
    assert found["support"] == np.bincount(labels).tolist()
    assert ("eer" in found) == (k == 2)
    matrix = sk.confusion_matrix(labels, predicted)
    assert confusion(labels, predicted, k).tolist() == matrix.tolist()


def test_a_class_without_samples_neither_crashes_nor_warns() -> None:
    labels, log_probs = made_up(60, 4)
    kept = labels != 2
    predicted = log_probs[kept].argmax(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(labels[kept], log_probs[kept])
        low, high = bootstrap(labels[kept], predicted, np.arange(kept.sum()), "balanced_accuracy")
        one_class = scores(np.zeros(5, int), log_probs[:5, :2])
    assert found["roc_auc"] is None and found["average_precision"] is None
    assert found["support"][2] == 0 and found["recall"][2] == 0
    recall = [np.mean(predicted[labels[kept] == c] == c) for c in (0, 1, 3)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert low <= found["balanced_accuracy"] <= high
    assert one_class["eer"] is None


@pytest.mark.parametrize("groups", [6, 20, 200])
def test_an_interval_of_95_per_cent_is_one(groups: int) -> None:
    """Of 400 draws of groups, each with a difficulty of its own, about 380 have the truth in it."""
    rng, held = np.random.default_rng(groups), 0
    units = np.repeat(np.arange(groups), 10)
    for _ in range(400):
        right = rng.random(len(units)) < rng.beta(6, 2, groups)[units]
        low, high = bootstrap(
            np.zeros(len(units), int), (~right).astype(int), units, "accuracy", 300
        )
        held += low <= 0.75 <= high
    assert 0.92 * 400 <= held <= 0.97 * 400


def test_ece_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    log_probs = np.log(np.stack([confidence, 1 - confidence], axis=1))
    labels = np.array([0, 0, 0, 1])  # right, right, right, wrong
    # Bin (0.5, 0.6]: |0.5 - 0.55| = 0.05; bin (0.9, 1]: |1 - 0.95| = 0.05; two of four each.
    assert expected_calibration_error(labels, log_probs, bins=10) == pytest.approx(0.05)
    labels = np.array([0, 1, 0, 1])  # the upper bin: |0.5 - 0.95| = 0.45
    assert expected_calibration_error(labels, log_probs, bins=10) == pytest.approx(0.25)
    count, mean, accuracy = reliability(labels, log_probs, bins=10)
    assert count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert mean[9] == pytest.approx(0.95) and accuracy[9] == 0.5


def two_classes(score: list[float]) -> np.ndarray:
    p = np.array(score)
    return np.log(np.stack([1 - p, p], axis=1))


def test_eer_by_hand() -> None:
    # Thresholds between 0.4 and 0.6 miss one of four 1s and let one of four 0s pass.
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    crossed = two_classes([0.1, 0.2, 0.3, 0.7, 0.25, 0.75, 0.8, 0.9])
    assert scores(labels, crossed)["eer"] == pytest.approx(0.25)
    apart = two_classes([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    assert scores(labels, apart)["eer"] == 0
    assert scores(1 - labels, apart)["eer"] == 1
    assert scores(labels, two_classes([0.5] * 8))["eer"] == pytest.approx(0.5)


def test_pooling_by_hand() -> None:
    segments = np.log(np.array([[0.5, 0.5], [0.8, 0.2], [0.9, 0.1], [0.2, 0.8]]))
    pooled, order = pool(segments, np.array([7, 7, 3, 7]))
    assert order.tolist() == [3, 7]
    assert np.exp(pooled[0]) == pytest.approx([0.9, 0.1])
    # Cube roots of 0.5 * 0.8 * 0.2 and of 0.5 * 0.2 * 0.8: equal, so one half each.
    assert np.exp(pooled[1]) == pytest.approx([0.5, 0.5])
    pooled, _ = pool(np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])), np.zeros(3, int))
    a, b = (0.9 * 0.9 * 0.4) ** (1 / 3), (0.1 * 0.1 * 0.6) ** (1 / 3)
    assert np.exp(pooled[0]) == pytest.approx([a / (a + b), b / (a + b)])


def test_pooling_survives_a_probability_of_zero() -> None:
    with np.errstate(divide="ignore"):
        segments = np.log(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    pooled, _ = pool(segments, np.zeros(3, int))
    assert np.isfinite(pooled).all()
    assert pooled[0].argmax() == 1
    assert np.isfinite(scores(np.array([1, 0, 0]), segments)["loss"])


def test_bootstrap_draws_whole_units() -> None:
    labels = np.zeros(400, int)
    predicted = np.repeat([0, 1], [320, 80])
    # 20 units of 20 alike rows carry as much as 20 rows: standard error 0.8 * 0.2 / 20, its root.
    low, high = bootstrap(labels, predicted, np.repeat(np.arange(20), 20), "accuracy")
    assert (high - low) / 2 == pytest.approx(1.96 * (0.16 / 20) ** 0.5, abs=0.02)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_a_resample_is_scored_as_scikit_learn_does(metric: str) -> None:
    labels, log_probs = made_up(90, 3)
    predicted = log_probs.argmax(axis=1)
    functions = {
        "accuracy": sk.accuracy_score,
        "balanced_accuracy": sk.balanced_accuracy_score,
        "macro_f1": lambda true, guess: sk.f1_score(true, guess, average="macro"),
    }
    rng = np.random.default_rng(0)
    picks = rng.integers(90, size=(2000, 90))  # the same draws, one at a time
    values = [functions[metric](labels[pick], predicted[pick]) for pick in picks[:300]]
    low, high = bootstrap(labels, predicted, np.arange(90), metric, n=300)
    edge = 100 * stats.norm.cdf(-np.sqrt(90 / 89) * stats.t.ppf(0.975, 89))
    assert 2 < edge < 2.5
    assert [low, high] == pytest.approx(np.percentile(values, [edge, 100 - edge]))


def test_nan_and_nothing_are_told() -> None:
    labels, log_probs = made_up(20, 3)
    log_probs[4, 1] = np.nan
    with pytest.raises(UserError, match="1 of 20 predictions are NaN"):
        scores(labels, log_probs)
    with pytest.raises(UserError, match="0 samples"):
        scores(labels[:0], log_probs[:0])
