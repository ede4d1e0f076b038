"""The forest: its statistics by hand, its trees against scikit-learn, a run against its rules."""

import json

import numpy as np
import pytest
from conftest import draw_nothing
from processes import forked, forked_ranks, on_ranks, train
from runs import config_file
from safetensors.numpy import load_file
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier

from shards.index import open_set
from toolkit.__main__ import main
from toolkit.band_statistics import BAND, OVER_TIME, SHAPE, feature_names, pooled
from toolkit.forest import features, log_shares, tree_arrays, votes
from toolkit.predictions import read_predictions


@pytest.fixture
def config(tone_set, tmp_path):
    return config_file(tmp_path, tone_set, run={"name": "f"}, model={"name": "forest", "trees": 20})


def test_statistics_of_a_band_by_hand():
    x = np.zeros((1, 2, 4), np.float32)
    x[0, 0] = [0, 2, 4, 6]
    found = dict(zip(feature_names(2), pooled(x)[0].tolist(), strict=True))
    assert found["mean of band 0"] == 3 and found["mean of band 1"] == 0
    assert found["deviation of band 0"] == pytest.approx(np.sqrt(5))
    assert found["50 % of band 0"] == 3 and found["90 % of band 0"] == pytest.approx(5.4)
    assert found["delta size of band 0"] == 1.5  # 0, 2, 2, 2
    assert len(found) == 2 * len(BAND) + len(SHAPE) * len(OVER_TIME)


def test_the_shape_of_a_line_and_of_white_noise():
    line, flat = np.full((1, 8, 3), -100.0), np.full((1, 8, 3), -20.0)
    line[0, 5] = 0
    for x, centroid, flatness in ((line, 5, 0), (flat, 3.5, 1)):
        found = dict(zip(feature_names(8), pooled(x)[0].tolist(), strict=True))
        assert found["centroid, mean"] == pytest.approx(centroid, abs=1e-6)
        assert found["flatness, mean"] == pytest.approx(flatness, abs=1e-4)
        assert found["flux, mean"] == pytest.approx(0, abs=1e-6)
    assert found["level, mean"] == pytest.approx(-20 + 10 * np.log10(8), abs=1e-4)


@pytest.mark.parametrize("value", [-60000, -100, 0, 60000])
def test_constant_bands_of_any_level_have_finite_statistics(value):
    found = pooled(np.full((1, 8, 1), value, np.float16))
    assert np.isfinite(found).all()
    level = dict(zip(feature_names(8), found[0].tolist(), strict=True))["level, mean"]
    assert level == pytest.approx(value + 10 * np.log10(8), rel=1e-3)


@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 2]])
def test_trees_vote_as_in_scikit_learn_to_the_last_bit(classes):
    x, y = make_classification(300, 12, n_informative=6, n_classes=3, random_state=0)
    x, kept = x.astype(np.float32), np.isin(y, classes)
    forest = RandomForestClassifier(7, random_state=1).fit(x[kept][:150], y[kept][:150])
    shares = votes(tree_arrays(forest, forest.estimators_, 3), x) / 7
    np.testing.assert_array_equal(shares[:, classes], forest.predict_proba(x))
    assert not shares[:, [c for c in range(3) if c not in classes]].any()
    assert np.exp(log_shares(7 * shares, 7)).sum(1) == pytest.approx(1)


def test_a_run_leaves_what_every_run_does_and_predicts_as_it_did(
    config, tone_set, tmp_path, monkeypatch
):
    folder, shard_set = tmp_path / "runs/f/fold-0", open_set(tone_set)
    for fold in range(4):
        code, told = forked(config, f"--data.fold={fold}")
        assert code == 0, told
        draw_nothing(monkeypatch)  # of the others
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.yaml", "environment.json", "best.safetensors", "model.json", "predictions.csv",
        "scores.json", "report.txt", "report.html", "confusion_matrix.png", "importance.png",
    }  # fmt: skip
    assert not [name for name in names if "pkl" in name or "pickle" in name or "joblib" in name]
    numbers = np.flatnonzero(shard_set.index["fold"] == 0)
    arrays = load_file(folder / "best.safetensors")
    again = log_shares(votes(arrays, features(shard_set, numbers)), 20)
    rows = read_predictions(folder / "predictions.csv").at("segment")
    np.testing.assert_allclose(rows.probabilities, np.exp(again), rtol=1e-8)
    assert main(["collect", str(folder.parent)]) == 0
    collected = json.loads((folder.parent / "folds.json").read_text())["recording"]["pooled"]
    assert collected["n"] == 36 and collected["accuracy"] > 0.9  # tones: a chance guess has 1/3
    assert "is finished" in forked(config)[1]


def test_it_grows_without_torch(config, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    done = train(1, config, "--model.trees=2")
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sklearn.ensemble" in loaded and not loaded & {"torch", "accelerate"}


@pytest.mark.usefixtures("no_pictures")
def test_the_same_seed_grows_the_same_trees_on_any_number_of_threads(config, tmp_path):
    found = []
    for threads in (1, 2):
        code, told = forked(config, f"--train.threads={threads}", f"--run.name=t{threads}")
        assert code == 0, told
        found.append((tmp_path / f"runs/t{threads}/fold-0/best.safetensors").read_bytes())
    assert found[0] == found[1]


@pytest.mark.usefixtures("no_pictures")
def test_the_validation_part_is_scored_while_it_grows(config, tmp_path):
    code, told = forked(config, "--data.protocol=kfold_nested", "--train.max_steps=15")
    assert code == 0, told
    lines = (tmp_path / "runs/f/fold-0/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [1, 3, 4, 6, 7, 9, 10, 12, 13, 15]
    code, told = forked(config, "--data.protocol=kfold_nested")  # a dry run is not finished
    assert code == 0 and "is finished" not in told


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--model.dropout=0.5", "model.dropout=0.5: forest has no such setting"),
        ("--model.freeze=[backbone]", "a forest has no such thing"),
        ("--model.outputs=1", "model.outputs=1: a forest has no such thing"),
        ("--train.overfit_batch=true", "a forest has no such thing"),
        ("--model.trees=0", "at least 1"),
    ],
)
def test_settings_of_networks_are_refused(config, word, message):
    code, told = forked(config, word)
    assert code == 2 and message in told and told.count("\n") == 1


def test_two_processes_are_refused_in_one_line(config):
    ranks = forked_ranks(2, config)
    assert [code for code, _ in ranks] == [2, 2]
    said = [line for _, text in ranks for line in text.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "model.name=forest takes one process" in said[0]


def test_other_commands_name_what_a_forest_lacks(config, capfd, monkeypatch):
    monkeypatch.setattr("toolkit.cost.REGISTRY", {"cnn_tiny": None})
    assert on_ranks(1, lambda: main(["lr_find", config])) == [2]
    assert "trees have no gradient" in capfd.readouterr().err
    assert main(["models", config]) == 0
    assert "\n\nforest: model.name=forest: trees" in capfd.readouterr().out
