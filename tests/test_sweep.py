"""Seeds and settings of a run joined: against scikit-learn, and never chosen by the test part."""

import json
import shutil
import statistics
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folds import change, make_set, train
from sklearn.metrics import accuracy_score, f1_score

from toolkit import curves, figures, report
from toolkit.__main__ import main
from toolkit.figures import to_png
from toolkit.predictions import read_predictions
from toolkit.results import find_trainings


def validate(folder: Path, value: float) -> None:
    """Give a training scores on a validation part: `value` at the step that was scored."""
    with (folder / "metrics.jsonl").open("a") as out:
        out.write("\n")
        for step, f1 in ((10, 0.999), (20, value)):
            line = {"kind": "eval", "part": "val", "step": step, "epoch": step // 10}
            out.write(json.dumps(line | {"macro_f1": f1, "loss": 1 - f1}) + "\n")


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.fixture(scope="module", autouse=True)
def plain() -> Iterator[None]:
    """No pages and pictures of the folds, which take most of the time: test_collect has them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_page", "write_figures"):
            patch.setattr(report, name, lambda *_: None)
        patch.setattr(curves, "draw_curves", lambda *_: None)
        patch.setattr(figures, "to_png", lambda figure: to_png(figure) if figure else b"")
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rates, the higher with the better validation; two seeds of three folds each."""
    folder = tmp_path_factory.mktemp("trained")
    shard_set = make_set(folder / "set")
    for lr, seed, fold in product((0.1, 0.01), (0, 1), range(3)):
        place = folder / "run" / f"lr={lr}" / f"seed-{seed}"
        train(place, shard_set, fold, "kfold_nested", lr, seed)
        validate(place / f"fold-{fold}", 5 * lr + 0.01 * fold + 0.02 * seed)
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_seeds_are_joined(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run / "lr=0.1"
    assert main(["collect", str(run), "--bootstrap_unit=recording"]) == 0
    found = read(run / "seeds.json")
    rows = [read_predictions(run / f"seed-{s}/predictions.csv").at("recording") for s in (0, 1)]
    accuracies = [accuracy_score(one.labels, one.predicted) for one in rows]
    f1 = [f1_score(one.labels, one.predicted, average="macro") for one in rows]
    assert accuracies[0] != accuracies[1]
    part = found["recording"]
    assert part["mean"]["accuracy"] == pytest.approx(statistics.mean(accuracies))
    assert part["std"]["accuracy"] == pytest.approx(statistics.stdev(accuracies))
    assert part["mean"]["macro_f1"] == pytest.approx(statistics.mean(f1))
    # Normal approximation of the mean of both seeds over the 36 recordings.
    right = np.mean([one.labels == one.predicted for one in rows], axis=0)
    half = 1.96 * right.std() / len(right) ** 0.5
    low, high = part["interval"]["accuracy"]
    np.testing.assert_allclose([low, high], right.mean() + np.array([-half, half]), atol=0.02)
    said = capsys.readouterr().out
    assert f"{100 * statistics.mean(accuracies):.1f} % ± " in said and "over 2 seeds" in said
    table = [line for line in (run / "seeds.md").read_text().splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in table[0].split("|")[1:6]] == [
        "seed", "fold 1", "fold 2", "fold 3", "accuracy %",
    ]  # fmt: skip
    assert [line.split()[1] for line in table[2:]] == ["0", "1", "mean", "std"]


def test_missing_trainings_are_named_and_give_no_interval(run, capsys):
    run = run / "lr=0.1"
    (run / "seed-1/fold-2/scores.json").unlink()
    assert main(["collect", str(run)]) == 0
    said = capsys.readouterr().out
    assert "note: not finished: seed-1/fold-2" in said and "seed 1: folds missing: 3" in said
    assert read(run / "seeds.json")["recording"]["interval"]["accuracy"] is None


def test_seeds_of_different_sets_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run / "lr=0.1"
    for fold in range(3):
        change(run / f"seed-1/fold-{fold}", shard_set="another")
    assert main(["collect", str(run)]) == 2
    assert "another shard_set than in" in capsys.readouterr().err


def test_settings_are_ranked_by_validation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", str(run)]) == 0
    sweep = read(run / "sweep.json")
    assert sweep["knobs"] == ["optim.lr"] and sweep["metric"] == "macro_f1"
    assert [one["name"] for one in sweep["settings"]] == ["lr=0.1", "lr=0.01"]
    values = [0.5 + 0.01 * fold + 0.02 * seed for seed, fold in product((0, 1), range(3))]
    first = sweep["settings"][0]
    assert first["validation"] == pytest.approx(statistics.mean(values))  # not the best epoch's
    assert first["std"] == pytest.approx(statistics.stdev(values)) and first["trained"] == 6
    low, high = sweep["effects"]["optim.lr"]
    assert (low["value"], high["value"]) == ("0.01", "0.1")
    assert high["mean"] - low["mean"] == pytest.approx(0.45)
    assert (run / "sweep.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "best on validation: lr=0.1; tested: accuracy per recording" in said
    shown = said[: said.index("best on")]
    tested = [one["test"]["recording"]["mean"]["accuracy"] for one in sweep["settings"]]
    assert not any(f"{100 * value:.1f}" in shown for value in tested)


def test_a_setting_with_fewer_trainings_comes_last(run: Path) -> None:
    shutil.rmtree(run / "lr=0.1/seed-1")
    assert main(["collect", str(run)]) == 0
    sweep = read(run / "sweep.json")
    assert [(one["name"], one["whole"]) for one in sweep["settings"]] == [
        ("lr=0.01", True),
        ("lr=0.1", False),
    ]


@pytest.mark.parametrize("protocol", ["kfold", "kfold_optimistic"])
def test_without_validation_nothing_is_ranked(run, capsys, protocol):
    for training in find_trainings(run):
        change(training.folder, protocol=protocol)
        if protocol != "kfold":
            continue  # the part that validates is the one that tests
        records = (training.folder / "metrics.jsonl").read_text().splitlines()
        kept = [line for line in records if '"val"' not in line]
        (training.folder / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    assert main(["collect", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"nothing is ranked: data.protocol={protocol} has no validation part of its own" in said
    assert "--data.protocol=kfold_nested" in said and "best on" not in said
    assert [one["name"] for one in read(run / "sweep.json")["settings"]] == ["lr=0.01", "lr=0.1"]
    assert not (run / "sweep.png").exists()


@pytest.mark.parametrize(
    "key, values, said",
    [
        ("best_metric", ["loss", "macro_f1"], "train.best_metric is loss, macro_f1"),
        (
            "protocol",
            ["kfold_nested", "kfold_optimistic"],
            "data.protocol is kfold_nested, kfold_opt",
        ),
        ("folds", [2, 1], "no setting has validated all folds and seeds"),
    ],
)
def test_settings_that_cannot_be_compared_are_not_ranked(run, capsys, key, values, said):
    for value, grid in zip(values, ("lr=0.01", "lr=0.1"), strict=True):
        if key == "folds":
            shutil.rmtree(run / grid / f"seed-0/fold-{value}")
        for training in find_trainings(run / grid):
            if key == "protocol":
                change(training.folder, protocol=value)
            if key == "best_metric":
                with (training.folder / "config.yaml").open("a") as out:
                    out.write(f"train: {{best_metric: {value}}}\n")
    assert main(["collect", str(run)]) == 0
    told = capsys.readouterr().out
    assert f"nothing is ranked: {said}" in " ".join(told.split()) and "best on" not in told
    optimistic = "optimistic: the epoch was chosen on the reported fold" in told.splitlines()[0]
    assert optimistic == (key == "protocol") and not (run / "sweep.png").exists()


def test_a_setting_alone_has_no_knobs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "lr=0.01")
    assert main(["collect", str(run)]) == 0
    assert "best on validation: lr=0.1" in capsys.readouterr().out
    assert "Knobs" not in (run / "sweep.md").read_text() and not (run / "sweep.png").exists()
