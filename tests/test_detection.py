"""Scores of two classes against scikit-learn and brute force; thresholds and attacks."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, SETTINGS
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import forked
from runs import config_file, records
from sklearn import metrics as sk

from shards.build import build
from shards.errors import UserError
from toolkit import detection
from toolkit.__main__ import main
from toolkit.attacks import attack_names
from toolkit.decision import best_threshold, decide
from toolkit.intervals import average_precision
from toolkit.metrics import scores
from toolkit.predictions import read_predictions, write_predictions


def made_up(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    return truth, np.round(rng.normal(size=n) + 1.2 * truth, 1)  # with ties


def brute_force(truth, score, costs):
    """EER between the two thresholds where misses pass false alarms, and the least cost."""
    points = []
    for threshold in [np.inf, *sorted(set(score.tolist()), reverse=True)]:
        said = score >= threshold
        points.append(((truth & ~said).sum() / truth.sum(), (~truth & said).sum() / (~truth).sum()))
    cost = [
        costs.miss * (1 - costs.prior) * miss + costs.false_alarm * costs.prior * alarm
        for miss, alarm in points
    ]
    worthless = min(costs.miss * (1 - costs.prior), costs.false_alarm * costs.prior)
    for (m0, f0), (m1, f1) in pairwise(points):
        if m1 <= f1:
            share = (m0 - f0) / ((m0 - f0) - (m1 - f1))
            return f0 + share * (f1 - f0), min(cost) / worthless
    raise AssertionError("misses end at 0")


@settings(max_examples=60, deadline=None, database=None)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(-5, 5)), min_size=2, max_size=30),
    prior=st.sampled_from([0.05, 0.5, 0.9]),
)
def test_eer_and_min_dcf_are_those_of_brute_force(rows, prior):
    truth, score = (
        np.array(column) for column in zip(*[*rows, (True, 1), (False, 0)], strict=True)
    )
    costs = detection.Costs(prior, 1.0, 10.0)
    found = detection.curve(truth, score)
    eer, dcf = brute_force(truth, score, costs)
    assert detection.equal_error_rate(found)[0] == pytest.approx(eer)
    assert detection.min_dcf(found, costs)[0] == pytest.approx(dcf)
    assert detection.roc_auc(found)[0] == pytest.approx(sk.roc_auc_score(truth, score))


def test_the_curve_is_that_of_scikit_learn():
    truth, score = made_up()
    found = detection.curve(truth, score)
    alarms, hits, _ = sk.roc_curve(truth, score, drop_intermediate=False)
    np.testing.assert_allclose(found.false_alarms[0], alarms)
    np.testing.assert_allclose(found.misses[0], 1 - hits, atol=1e-12)
    fpr, fnr, _ = sk.det_curve(truth, score)
    ours = set(zip(found.false_alarms[0].round(9), found.misses[0].round(9), strict=True))
    assert set(zip(fpr.round(9), fnr.round(9), strict=True)) <= ours


def test_a_weight_counts_as_so_many_rows():
    truth, score = made_up(40)
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, size=(20, 40)).astype(float)
    found = detection.weighted(truth, score, weights)
    precision = average_precision(truth, score, weights)
    for i, weight in enumerate(weights.astype(int)):
        t, s = np.repeat(truth, weight), np.repeat(score, weight)
        once = detection.curve(t, s)
        assert found["eer"][i] == pytest.approx(detection.equal_error_rate(once)[0])
        assert found["min_dcf"][i] == pytest.approx(detection.min_dcf(once)[0])
        assert found["roc_auc"][i] == pytest.approx(sk.roc_auc_score(t, s))
        assert precision[i] == pytest.approx(sk.average_precision_score(t, s))
    nobody = np.where(truth, 0.0, 1.0)[None]
    assert all(np.isnan(value[0]) for value in detection.weighted(truth, score, nobody).values())


def test_min_dcf_knows_which_class_is_the_target():
    labels = np.array([0] * 9 + [1])
    score = np.array([-1.0] * 8 + [2.0, 1.0])  # one of the 0s looks most like a 1
    logs = np.stack([-np.logaddexp(0, score), -np.logaddexp(0, -score)], axis=1)
    one, zero = (scores(labels, logs, target=target)["min_dcf"] for target in (1, 0))
    assert one == pytest.approx(min(0.5 / 9 / 0.5, 0.95 / 0.5))  # accept it: a ninth of alarms
    assert zero == pytest.approx(0.95 / 9 / 0.5)  # miss it: a ninth of 0.95


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "balanced_accuracy"])
def test_a_threshold_is_the_best_of_all(metric):
    functions = {
        "accuracy": sk.accuracy_score,
        "balanced_accuracy": sk.balanced_accuracy_score,
        "macro_f1": lambda true, guess: sk.f1_score(true, guess, average="macro"),
    }
    for seed in range(8):
        truth, score = made_up(40, seed)
        p = 1 / (1 + np.exp(-score - 1))
        threshold = best_threshold(truth, p, metric)
        every = [functions[metric](truth, p >= t) for t in [0, 0.5, *p, 2]]
        assert functions[metric](truth, p >= threshold) == pytest.approx(max(every))
    apart = np.array([False, True])
    assert best_threshold(apart, np.array([0.2, 0.9]), metric) == 0.5  # as good as any


def test_a_threshold_where_both_errors_are_alike():
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1], bool)
    p = np.array([0.1, 0.2, 0.25, 0.4, 0.3, 0.6, 0.7, 0.8]) / 2
    assert best_threshold(truth, p, "eer") == pytest.approx(0.175)  # one miss, one alarm
    decision = {"target": "b", "thresholds": {"b": 0.2}}
    said = decide(np.log(np.array([[0.7, 0.3], [0.9, 0.1]])), ["a", "b"], decision)
    assert said.tolist() == [1, 0]


def test_attacks_by_group_and_by_path():
    rows = {"path": ["x/A01_1.wav", "y/A02_2.wav", "z.wav"], "group": ["tts", "", "vc"]}
    rows["attack"] = ["", "world", "griffin"]
    assert attack_names("group", rows).tolist() == ["tts", "other", "vc"]
    assert attack_names("attack", rows).tolist() == ["other", "world", "griffin"]
    assert attack_names(r"(A\d+)_", rows).tolist() == ["A01", "A02", "other"]
    assert attack_names(r"A\d+", rows).tolist() == ["A01", "A02", "other"]
    with pytest.raises(UserError, match=r"report.by=\(: no regular expression"):
        attack_names("(", rows)


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    """Tones are real, with a hum (A1) or a hiss (A2) they are fake; A2 is only in the test part."""
    folder, rng = tmp_path_factory.mktemp("fakes"), np.random.default_rng(0)
    time, rows = np.arange(RATE) / RATE, ["path,label,attack,split"]
    (folder / "audio").mkdir()
    hum = 0.2 * np.sin(2 * np.pi * 180 * time)
    hiss = 0.02 * rng.normal(size=RATE)
    for part, counts in {"train": (10, 10, 0), "val": (6, 6, 0), "test": (8, 8, 8)}.items():
        for kind, extra, count in zip(("real", "A1", "A2"), (0, hum, hiss), counts, strict=True):
            for n in range(count):
                wave = 0.2 * np.sin(2 * np.pi * rng.uniform(500, 1500) * time) + extra
                wave = wave + 1e-3 * rng.normal(size=RATE)
                name = f"audio/{part}-{kind}-{n}.wav"
                soundfile.write(folder / name, wave.astype(np.float32), RATE)
                told = "real," if kind == "real" else f"fake,{kind}"
                rows.append(f"{name},{told},{part}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    words = {name: value for name, value in SETTINGS.items() if name != "group_from"}
    build(str(folder / "t.csv"), str(folder / "set"), workers=1, **words)
    return folder / "set"


@pytest.fixture
def config(fakes, tmp_path):
    return config_file(
        tmp_path, fakes, "", run={"name": "r"}, data={"protocol": "split"},
        optim={"lr": 1e-2, "warmup_epochs": 0}, report={"by": "attack"},
        train={"epochs": 12, "best_metric": "eer"},
    )  # fmt: skip


def test_a_run_of_two_classes_tells_of_attacks_seen_and_unseen(config, tmp_path):
    run = tmp_path / "r"
    code, told = forked(config)
    assert code == 0 and "EER" in told, told
    values = [entry["eer"] for entry in records(run, "eval")]
    result = json.loads((run / "scores.json").read_text())
    assert result["epoch"] == int(np.argmin(values)) + 1  # the first of the lowest
    assert main(["collect", str(run)]) == 0
    summary = json.loads((run / "folds.json").read_text())["detection"]
    rows = {row["name"]: row for row in summary["rows"]}
    assert summary["target"] == "real" and rows["all"]["n"] == 16
    assert rows["A1"]["seen"] is True and rows["A2"]["seen"] is False
    assert rows["seen attacks"]["n"] == rows["A2"]["n"] == 8
    assert rows["seen attacks"]["eer"] == rows["A1"]["eer"]
    predictions = read_predictions(run / "predictions.csv").at("recording")
    kept = ~np.array(["A1" in path for path in predictions.recording])
    target = predictions.labels[kept] == 1
    eer, dcf = brute_force(target, predictions.probabilities[kept, 1], detection.Costs())
    assert rows["A2"]["eer"] == pytest.approx(eer) and rows["A2"]["min_dcf"] == pytest.approx(dcf)
    low, high = rows["all"]["interval"]["eer"]
    assert low <= rows["all"]["eer"] <= high
    for name in ("roc.png", "det.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    for text in ((run / "folds.md").read_text(), (run / "report.html").read_text()):
        assert "unseen attacks" in text and "min-DCF" in text
    assert "<th></th>" not in (run / "report.html").read_text()  # a column says what it is
    info = json.loads((run / "model.json").read_text())
    threshold = info["decision"]["thresholds"]["real"]
    assert info["decision"]["target"] == "real" and info["decision"]["n"] == 12
    said = predictions.probabilities[:, 1] >= threshold
    assert (said == predictions.predicted).all()
    # Another seed, that says of each recording what the first says of another one.
    both = [Path(shutil.copytree(run, tmp_path / f"seeds/seed-{seed}")) for seed in (0, 1)]
    rows_of = read_predictions(both[1] / "predictions.csv")
    rows_of.probabilities[:] = rows_of.probabilities[::-1].copy()
    write_predictions(both[1] / "predictions.csv", rows_of)
    assert main(["collect", str(tmp_path / "seeds")]) == 0
    alone = [json.loads((one / "folds.json").read_text())["detection"]["rows"] for one in both]
    joined = json.loads((tmp_path / "seeds/seeds.json").read_text())["detection"]["rows"]
    for one, other, mean in zip(*alone, joined, strict=True):
        assert mean["eer"] == pytest.approx((one["eer"] + other["eer"]) / 2), mean["name"]
        assert (mean["name"], mean["n"], mean.get("seen")) == (
            one["name"],
            one["n"],
            one.get("seen"),
        )
        low, high = mean["interval"]["eer"]
        assert low <= mean["eer"] <= high
    assert alone[0][0]["eer"] != alone[1][0]["eer"]
    assert "| unseen attacks" in (tmp_path / "seeds/seeds.md").read_text()


def test_what_does_not_fit_is_refused(config):
    for word, said in (
        ("--report.target=genuine", "report.target=genuine: no such class"),
        ("--report.threshold=half", "report.threshold=half: one of"),
        ("--report.dcf_prior=2", "report.dcf_prior=2.0: at most 1"),
        ("--report.by=(", "no regular expression"),
    ):
        code, told = forked(config, "--train.max_steps=1", word)
        assert code == 2 and said in told and told.count("error:") == 1, told


def test_the_reported_fold_may_choose_the_epoch_only_by_name(tone_set, tmp_path, capsys):
    data = {"protocol": "kfold_optimistic"}
    words = {"data": data, "train": {"epochs": 3}, "track": {"tensorboard": True}}
    config = config_file(tmp_path, tone_set, "", run={"name": "o"}, **words)
    code, told = forked(config)
    assert code == 0 and "optimistic" in told.splitlines()[-1], told
    fold = tmp_path / "o/fold-0"
    values = [entry["macro_f1"] for entry in records(fold, "eval")]
    result = json.loads((fold / "scores.json").read_text())
    assert result["segment"]["macro_f1"] == pytest.approx(max(values))
    assert main(["collect", str(tmp_path / "o")]) == 0
    said = "optimistic: the epoch was chosen on the reported fold"
    assert said in capsys.readouterr().out
    for folder, table in ((fold, "scores.json"), (fold.parent, "folds.json")):
        assert json.loads((folder / table).read_text())["caution"] == said
        rows = (folder / "predictions.csv").read_text().splitlines()
        assert "fold,caution,label" in rows[0] and all(f",{said}," in row for row in rows[1:])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(fold / "tensorboard")).Reload().Tags()["scalars"]
    assert {t.split("/")[0] for t in tags if "recording" in t} == {"test_optimistic"}
