"""Folds joined to one result, and the page that shows it, from a made-up run."""

import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folds import HOSTILE, Page, change, make_set, train, write_training
from sklearn.metrics import accuracy_score, f1_score

from shards.errors import UserError
from toolkit.__main__ import main
from toolkit.folds import collect
from toolkit.predictions import read_predictions, write_predictions
from toolkit.results import redact


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of three folds, collected; tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    shard_set = make_set(folder / "set")
    for fold in range(3):
        train(folder / "run", shard_set, fold)
    return folder / "run", collect(folder / "run")


@pytest.fixture
def run(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """Its three folds, not collected, for a test to change."""
    shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("*.html", "*.png"))
    return tmp_path / "run"


def test_a_fold_leaves_its_files(finished: tuple[Path, dict[str, Any]]) -> None:
    folder = finished[0] / "fold-1"
    result = json.loads((folder / "scores.json").read_text())
    assert result["fold"] == "2" and result["epoch"] == 2
    rows = read_predictions(folder / "predictions.csv")
    for level, n in (("segment", 24), ("recording", 12)):
        at = rows.at(level)
        assert len(at.labels) == n == result[level]["n"]
        assert result[level]["accuracy"] == pytest.approx(accuracy_score(at.labels, at.predicted))
    text = (folder / "report.txt").read_text()
    assert "per segment" in text and "per recording" in text and "Cat & cow" in text
    for name in ("confusion_matrix.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n")
    assert "night-rain, fold 2" in Page((folder / "report.html").read_text()).text


def test_pooled_mean_and_spread(finished: tuple[Path, dict[str, Any]]) -> None:
    run, summary = finished
    assert summary == json.loads((run / "folds.json").read_text())
    rows = read_predictions(run / "predictions.csv")
    for level in ("segment", "recording"):
        at, found = rows.at(level), summary[level]
        folds = [np.flatnonzero(at.fold == name) for name in ("1", "2", "3")]
        accuracies = [accuracy_score(at.labels[i], at.predicted[i]) for i in folds]
        f1 = [f1_score(at.labels[i], at.predicted[i], average="macro") for i in folds]
        assert found["pooled"]["accuracy"] == pytest.approx((at.labels == at.predicted).mean())
        assert found["mean"]["accuracy"] == pytest.approx(sum(accuracies) / 3)
        assert found["std"]["accuracy"] == pytest.approx(statistics.stdev(accuracies))
        assert found["mean"]["macro_f1"] == pytest.approx(statistics.mean(f1))
        low, high = found["interval"]["accuracy"]
        assert low < found["pooled"]["accuracy"] < high
        assert np.trace(found["confusion"]) == (at.labels == at.predicted).sum()
    assert summary["recording"]["pooled"]["n"] == 36 and summary["missing"] == []


def test_the_page_stands_alone_and_holds_the_score(finished: tuple[Path, dict[str, Any]]) -> None:
    run, summary = finished
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "img"}
    assert {"svg", "table", "style"} <= names
    assert not re.search(r"https?://", text)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    score = f"{100 * summary['recording']['pooled']['accuracy']:.1f}"
    assert any(attributes.get("class") == "score" for _, attributes in page.tags)
    assert f'<div class="score">{score}<' in text
    assert HOSTILE in page.text and "<script" not in text
    assert "Dog" in page.text and "001 - Dog" not in page.text
    for file in (run / "report.html", run / "fold-0" / "report.html", run / "folds.json"):
        assert "hush-hush" not in file.read_text()
    assert "***" in page.text


def test_the_hardest_recording_comes_first(finished: tuple[Path, dict[str, Any]]) -> None:
    text = Page((finished[0] / "report.html").read_text()).text
    hardest = text[text.index("The hardest recordings") :]
    assert hardest.index(HOSTILE) < hardest.index("rain/")
    assert re.search(r"\s+Dog\s+Rain\s+100\.0\s+0\.0", hardest)


def test_missing_folds_and_differing_configs_are_named(run: Path) -> None:
    shutil.rmtree(run / "fold-1")
    write_training(run / "fold-2", lr=0.5)
    assert collect(run)["missing"] == ["2"]
    page = Page((run / "report.html").read_text()).text
    for text in (page, (run / "folds.md").read_text()):
        assert "1 of 3 folds missing: 2 (fold-1)" in text
        assert "optim.lr differs between the folds (1: 0.001, 3: 0.5)" in text


def test_a_missing_fold_is_told_with_its_last_words(run, capsys):
    (run / "fold-1/scores.json").unlink()
    told = "epoch 1\n\nMemoryError: <no room>\napi_key=abc123\nsrun: launch/slurm: ending\n"
    told += "srun: error: n1: Exited\n[2026-01-31T12:00Z job 3_1 on n1] ended with exit code 1"
    (run / "fold-1/train.log").write_text(told)
    assert main(["collect", str(run), "--expect=2"]) == 0
    assert main(["collect", str(run), "--expect=3"]) == 1
    assert "2 of 3 trainings are finished; see fold-1" in capsys.readouterr().err
    assert json.loads((run / "folds.json").read_text())["why"] == {
        "2": ["epoch 1", "MemoryError: <no room>", "api_key=***"]
    }
    page = Page((run / "report.html").read_text()).text
    assert "fold 2 said last: epoch 1 / MemoryError: <no room> / api_key=***" in page
    assert "fold 2 said last: epoch 1 / MemoryError" in (run / "folds.md").read_text()
    for fold in (0, 2):
        (run / f"fold-{fold}/scores.json").unlink()
    assert main(["collect", str(run)]) == 2
    assert "fold-1 said last: api_key=***" in capsys.readouterr().err


def test_a_run_without_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard_set = make_set(tmp_path / "set", folds=1)
    train(tmp_path / "run", shard_set, 0, protocol="split")
    before = (tmp_path / "run" / "predictions.csv").read_bytes()
    assert main(["collect", str(tmp_path / "run")]) == 0
    assert "accuracy per recording" in capsys.readouterr().out
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == before
    summary = json.loads((tmp_path / "run" / "folds.json").read_text())
    assert summary["missing"] == [] and summary["recording"]["std"]["accuracy"] is None


def test_an_optimistic_protocol_is_said_at_every_table(run: Path) -> None:
    for fold in run.glob("fold-*"):
        change(fold, protocol="kfold_optimistic")
    collect(run, "group")
    text = (run / "folds.md").read_text()
    said = "the epoch was chosen on the reported fold"
    tables = [part for part in re.split(r"^## ", text, flags=re.M)[1:] if "|" in part]
    assert len(tables) == 4 and all(said in part for part in tables)
    assert "resamples of whole groups" in text
    sections = (run / "report.html").read_text().split("<section")
    assert all(said in part for part in sections if "<td" in part and 'class="kv"' not in part)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"protocol": "kfold_nested"}, "different protocols, kfold and kfold_nested"),
        ({"shard_set": "another"}, "different shard sets"),
        ({"part": "val"}, "different parts, test and val"),
    ],
)
def test_folds_of_different_experiments(run: Path, values: dict[str, str], message: str) -> None:
    change(run / "fold-1", **values)
    with pytest.raises(UserError, match=message):
        collect(run)


def test_folds_of_different_classes(run: Path) -> None:
    file = run / "fold-1" / "predictions.csv"
    file.write_text(file.read_text().replace("Dog", "Wolf"))
    with pytest.raises(UserError, match=r"fold-0 and .*fold-1: different classes"):
        collect(run)


def test_a_recording_in_two_folds_is_named(run: Path) -> None:
    file = run / "fold-1" / "predictions.csv"
    rows = read_predictions(file)
    rows.recording[rows.recording == "rain/15, night.wav"] = "rain/4, night.wav"
    write_predictions(file, rows)
    with pytest.raises(UserError, match=r"^rain/4, night.wav: in fold 1 and in fold 2"):
        collect(run)


def test_words_that_are_off_are_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "empty").mkdir()
    expected = {
        ("collect", "none"): "no such run",
        ("report", "none"): "no such run",
        ("collect", "empty"): "no finished fold",
        ("collect", "fold-0"): "one fold of a run",
        ("collect", ".", "--bootstrap_unit=segment"): "expected recording or group",
    }
    for (command, name, *flags), message in expected.items():
        assert main([command, str(run / name), *flags]) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    file = run / "fold-0" / "predictions.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    assert main(["collect", str(run)]) == 2
    assert "11 rows of level recording, scores.json has 12" in capsys.readouterr().err


def test_report_is_rebuilt(finished, run, capsys):
    for there, here in ((finished[0], run), (finished[0] / "fold-1", run / "fold-1")):
        assert main(["report", str(here)]) == 0
        assert capsys.readouterr().out.strip() == str(here / "report.html")
        assert (here / "report.html").read_bytes() == (there / "report.html").read_bytes()


def test_secrets_are_hidden() -> None:
    shown = redact(
        {
            "track": {"wandb_api_key": "abc", "password": 12, "project": "rain"},
            "hubToken": "abc",
            "cls_token": True,
            "command": "train.py --track.api_key=abc --hub-token abc --lr=3 s3://me:abc@host/x",
            "words": ["hf_abcabcabcabcabc", "keep"],
        }
    )
    assert "abc" not in str(shown) and "12" not in str(shown)
    assert shown["track"]["project"] == "rain" and shown["cls_token"] is True
    assert shown["command"].endswith("--lr=3 s3://***@host/x")
    assert shown["words"][1] == "keep"
