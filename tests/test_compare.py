"""Two runs compared on the same recordings: against arithmetic, and refused where they differ."""

import json
import shutil
from math import comb
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_nothing
from folds import make_set, train, write_training

from shards.index import ShardSet
from toolkit.__main__ import main
from toolkit.compare import compare, markdown, mcnemar
from toolkit.folds import collect
from toolkit.predictions import read_predictions, write_predictions
from toolkit.report import write_fold


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of three folds, and one that has the labels of nine recordings wrong on top."""
    folder = tmp_path_factory.mktemp("rivals")
    shard_set = make_set(folder / "set")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        for fold in range(3):
            train(folder / "good", shard_set, fold)
    shutil.copytree(folder / "good", folder / "bad")
    for fold in (folder / "bad").glob("fold-*"):
        rows = read_predictions(fold / "predictions.csv")
        right = np.flatnonzero((rows.labels == rows.predicted) & (rows.level == "recording"))[:3]
        rows.predicted[right] = (rows.labels[right] + 1) % 3
        write_predictions(fold / "predictions.csv", rows)
    return folder / "good", folder / "bad"


def test_mcnemar_is_a_coin():
    for first, second in ((0, 0), (1, 9), (4, 4), (7, 2)):
        n, tail = first + second, min(first, second)
        p = min(1.0, 2 * sum(comb(n, k) for k in range(tail + 1)) / 2**n)
        assert mcnemar(first, second) == pytest.approx(p)


def test_a_worse_run_is_worse_by_what_it_lost(runs, tmp_path, capsys):
    good, bad = runs
    found = compare(good, bad)
    rows = [json.loads((good / f"fold-{f}/scores.json").read_text()) for f in range(3)]
    right = round(sum(12 * row["recording"]["accuracy"] for row in rows))
    assert found["n"] == 36 and found["counts"] == [right - 9, 9, 0, 36 - right]
    assert found["mcnemar"] == pytest.approx(2 / 2**9)
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["difference"] == pytest.approx(-9 / 36)
    low, high = accuracy["interval"]
    # 36 differences of 0 and -1 in 18 groups of two: at least as wide as if all were alone.
    alone = 1.96 * np.sqrt(0.25 * 0.75 / 36)
    assert -0.25 - 2 * alone < low < -0.25 - 0.5 * alone and -0.25 < high < 0
    assert found["unit"] == "group" and found["units"] == 18 and accuracy["above"] < 0.01
    swapped = compare(bad, good)["metrics"]["accuracy"]
    assert swapped["interval"] == pytest.approx([-high, -low])
    out = tmp_path / "c"
    assert main(["compare", str(good), str(bad), f"--out={out}"]) == 0
    assert (
        "-25.0" in capsys.readouterr().out and "protocol kfold" in (tmp_path / "c.md").read_text()
    )
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_pictures")
def test_min_dcf_is_that_of_the_target_and_the_costs(tmp_path):
    make_set(tmp_path / "set", folds=1)
    rows = np.load(tmp_path / "set/index.npy")
    rows["label"] %= 2
    np.save(tmp_path / "set/index.npy", rows)
    shard_set = ShardSet(tmp_path / "set", {"classes": ["bonafide", "spoof"], "folds": []})
    labels = np.array(shard_set.index["label"])
    score = np.random.default_rng(0).normal(size=len(labels)) + 0.8 * labels
    logs = np.stack([-np.logaddexp(0, score), -np.logaddexp(0, -score)], axis=1)
    header = {"protocol": "split", "part": "test", "fold": None, "folds": [], "step": 1, "epoch": 1}
    costs = {"prior": 0.3, "miss": 2.0, "false_alarm": 3.0}
    noted = {"target": "bonafide", "costs": costs, "by": None, "seen": []}
    header |= {"seconds": 1.0, "world_size": 1, "detection": noted}
    for name, some in (("a", logs), ("b", np.roll(logs, 1, axis=0))):
        folder = tmp_path / name
        write_training(folder, 1e-3)
        result = write_fold(folder, shard_set, np.arange(len(labels)), some, header)
        rows = read_predictions(folder / "predictions.csv").at("recording")
        p, real = rows.probabilities[:, 0], rows.labels == 0
        every = [
            2 * 0.7 * (p[real] < t).mean() + 3 * 0.3 * (p[~real] >= t).mean()
            for t in [*p, 2]
        ]  # fmt: skip
        found = min(every) / min(2 * 0.7, 3 * 0.3)
        assert result["recording"]["min_dcf"] == pytest.approx(found)
        assert collect(folder)["detection"]["rows"][0]["min_dcf"] == pytest.approx(found)
        compared = compare(tmp_path / "a", folder)["metrics"]["min_dcf"]
        assert compared["second"] == pytest.approx(found)


def test_a_run_is_no_other_than_itself(runs):
    found = compare(runs[0] / "fold-0", runs[0] / "fold-0")
    assert found["mcnemar"] == 1 and found["metrics"]["macro_f1"]["interval"] == [0, 0]
    assert found["metrics"]["macro_f1"]["above"] == 0.5


def test_folds_that_both_lack_are_named_and_settings_to_choose_from(runs, tmp_path, capsys):
    for name in ("lr=0.1", "lr=0.2"):
        shutil.copytree(runs[0], tmp_path / "r" / name, ignore=shutil.ignore_patterns("fold-1"))
    assert main(["compare", str(tmp_path / "r"), str(runs[1])]) == 2
    assert "several seeds or settings; name one of them: lr=0.1, lr=0.2" in capsys.readouterr().err
    found = compare(tmp_path / "r/lr=0.1", tmp_path / "r/lr=0.2")
    assert found["n"] == 24 and "24 recordings; folds missing in both: 2." in markdown(found)


def test_seeds_are_compared_by_their_means(runs, tmp_path, capsys):
    good, bad = runs
    seeds = tmp_path / "seeds"
    for name, run in (("seed-0", good), ("seed-1", bad)):
        shutil.copytree(run, seeds / name)
    found, alone = compare(good, seeds), compare(good, bad)
    assert found["seeds"] == [1, 2] and found["mcnemar"] is None
    both, first, _, neither = alone["counts"]
    assert found["counts"] == [both + first / 2, first / 2, 0, neither]
    half = {name: one["difference"] / 2 for name, one in alone["metrics"].items()}
    assert {n: one["difference"] for n, one in found["metrics"].items()} == pytest.approx(half)
    edges = [x / 2 for x in alone["metrics"]["accuracy"]["interval"]]
    assert found["metrics"]["accuracy"]["interval"] == pytest.approx(edges)
    assert main(["compare", str(good), str(seeds), f"--out={tmp_path / 'c'}"]) == 0
    said = capsys.readouterr().out
    assert "(1 seeds)" not in said and "(2 seeds)" in said and "p =" not in said
    shutil.rmtree(seeds / "seed-1/fold-2")
    assert main(["compare", str(good), str(seeds)]) == 2
    assert "12 only in the first" in capsys.readouterr().err


def test_runs_on_other_recordings_are_refused(runs, tmp_path: Path, capsys):
    good, _ = runs
    shutil.copytree(good, tmp_path / "other", ignore=shutil.ignore_patterns("fold-2"))
    assert main(["compare", str(good), str(tmp_path / "other")]) == 2
    told = capsys.readouterr().err
    assert "12 only in the first, as rain/" in told and told.count("\n") == 1
    file = tmp_path / "other/fold-0/predictions.csv"
    rows = read_predictions(file)
    rows.labels[rows.recording == "rain/4, night.wav"] += 1
    rows.labels[:] %= 3
    write_predictions(file, rows)
    assert main(["compare", str(good / "fold-0"), str(tmp_path / "other/fold-0")]) == 2
    assert "rain/4, night.wav has another label" in capsys.readouterr().err
