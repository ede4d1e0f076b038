"""Losses against torch and arithmetic; several classes and one score from config to report."""

import json

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from conftest import RATE, SETTINGS
from processes import forked
from runs import config_file
from sklearn import metrics as sk

from shards.build import build
from shards.index import open_set
from toolkit import tagging
from toolkit.__main__ import main
from toolkit.config import load
from toolkit.curves import draw_curves
from toolkit.decision import learn
from toolkit.losses import Loss, log_probabilities
from toolkit.metrics import scores
from toolkit.predictions import read_predictions, truth
from toolkit.validation import score

pytestmark = pytest.mark.usefixtures("no_pictures")

Z = torch.tensor([[1.2, -0.3, 0.4], [-2.0, 0.1, 3.0], [0.0, 0.5, -0.5], [4.0, -4.0, 1.0]])
Y = torch.tensor([0, 2, 1, 1])
SEVERAL = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [0.3, 0.7, 1]]).float()


def test_losses_are_those_of_torch():
    w = (0.5, 2.0, 1.0)
    by_hand = F.cross_entropy(Z, Y, torch.tensor(w), reduction="none").sum() / 4
    torch.testing.assert_close(Loss(weights=w)(Z, Y), by_hand)
    torch.testing.assert_close(Loss(weights=w)(Z, F.one_hot(Y, 3).float()), by_hand)
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(Loss(binary=True)(Z, SEVERAL), bce(Z, SEVERAL))
    torch.testing.assert_close(Loss(binary=True)(Z, Y), bce(Z, F.one_hot(Y, 3).float()))
    torch.testing.assert_close(
        Loss(binary=True, weights=w)(Z, SEVERAL), bce(Z, SEVERAL, pos_weight=torch.tensor(w))
    )
    smooth = SEVERAL * 0.8 + 0.1
    torch.testing.assert_close(Loss(binary=True, smoothing=0.2)(Z, SEVERAL), bce(Z, smooth))


def test_focal_losses_by_hand():
    p = Z.softmax(1)[torch.arange(4), Y]
    torch.testing.assert_close(Loss(gamma=2.0)(Z, Y), -((1 - p) ** 2 * p.log()).mean())
    hard = (SEVERAL > 0.5).float()
    right = torch.where(hard > 0, Z.sigmoid(), 1 - Z.sigmoid())
    expected = -((1 - right) ** 1.5 * right.log()).mean()
    torch.testing.assert_close(Loss(binary=True, gamma=1.5)(Z, hard), expected)


@pytest.mark.parametrize("y", [torch.tensor([0, 1, 1, 0]), torch.tensor([[0.3, 0.7]] * 4)])
def test_one_score_has_the_binary_cross_entropy(y):
    z, present = Z[:, :1].requires_grad_(), (y if y.ndim == 1 else y[:, 1]).float()
    expected = F.binary_cross_entropy_with_logits(z[:, 0], present)
    torch.testing.assert_close(Loss()(z, y), expected)
    assert Loss()(z.half() * 1e4, y).isfinite()  # in float32


def test_what_logits_say():
    z = torch.tensor([[800.0], [-3.0]])
    assert log_probabilities(z, "softmax")[0].tolist() == [-800, 0]
    torch.testing.assert_close(
        log_probabilities(z, "softmax")[1].exp(),
        torch.tensor([1 - 0.04742587, 0.04742587]).double(),
    )
    torch.testing.assert_close(log_probabilities(Z, "sigmoid").exp(), Z.double().sigmoid())
    shares = log_probabilities(Z, "shares").exp()
    torch.testing.assert_close(shares, Z.double().sigmoid() / Z.double().sigmoid().sum(1)[:, None])


def test_scores_of_several_classes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.random((200, 4)) < 0.3
    logits = rng.normal(size=(200, 4)) + 2 * truth - 1
    p = 1 / (1 + np.exp(-logits))
    found, said = scores(truth, np.log(p)), p >= 0.5
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(truth, p))
    each = sk.average_precision_score(truth, p, average=None)
    assert found["class_average_precision"] == pytest.approx(each.tolist())
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(truth, p))
    for name in ("macro", "micro"):
        assert found[f"{name}_f1"] == pytest.approx(sk.f1_score(truth, said, average=name))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, said))
    assert found["loss"] == pytest.approx(sk.log_loss(truth.ravel(), p.ravel()))
    balanced = [sk.balanced_accuracy_score(truth[:, k], said[:, k]) for k in range(4)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(balanced))
    truth[:, 2] = False  # a class that nobody has counts in no mean
    found = scores(truth, np.log(p))
    kept = [0, 1, 3]
    assert found["class_average_precision"][2] is None
    assert found["average_precision"] == pytest.approx(
        sk.average_precision_score(truth[:, kept], p[:, kept])
    )


def test_tags_pool_by_mean_log_odds_and_thresholds_by_f1():
    p = np.array([[0.9, 0.2], [0.5, 0.2], [0.6, 0.7]])
    pooled, order = tagging.pool(np.log(p), np.array([3, 3, 1]))
    assert order.tolist() == [1, 3]
    assert np.exp(pooled) == pytest.approx(np.array([[0.6, 0.7], [0.75, 0.2]]))  # odds 9, 1: 3
    p = np.array([[0.1, 0.2, 0.9], [0.2, 0.3, 0.8], [0.3, 0.6, 0.1], [0.4, 0.7, 0.2]])
    truth = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 0], [1, 1, 0]], bool)
    decision = learn(truth, np.log(p), ["a", "b", "c"], 0, "macro_f1")
    assert list(decision["thresholds"].values()) == pytest.approx([0.15, 0.5, 0.5])


@pytest.fixture(scope="module")
def tag_set(tmp_path_factory):
    """Tones of 440 Hz and 2 kHz, alone and together, in three parts."""
    folder, rng = tmp_path_factory.mktemp("tags"), np.random.default_rng(0)
    time, rows = np.arange(RATE) / RATE, ["path,label"]
    (folder / "audio").mkdir()
    for n in range(36):
        tags = [["low"], ["high"], ["low", "high"]][n % 3]
        wave = 0.01 * rng.normal(size=RATE)
        for tag in tags:
            hertz = {"low": 440, "high": 2000}[tag]
            wave += 0.2 * np.sin(2 * np.pi * hertz * time + rng.uniform(0, 6))
        soundfile.write(folder / "audio" / f"{n}.wav", wave.astype(np.float32), RATE)
        rows.append(f"audio/{n}.wav,{';'.join(tags)}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    words = {name: value for name, value in SETTINGS.items() if name != "group_from"}
    build(str(folder / "t.csv"), str(folder / "set"), split="0.6,0.2,0.2", workers=1, **words)
    return folder / "set"


def run(tmp_path, shards, *words):
    config = config_file(
        tmp_path, shards, "", run={"name": "r"}, data={"protocol": "split"},
        optim={"lr": 1e-2, "warmup_epochs": 0}, train={"epochs": 15, "batch_size": 12},
    )  # fmt: skip
    code, told = forked(config, *words)
    assert code == 0, told
    assert main(["collect", str(tmp_path / "r")]) == 0
    rows = read_predictions(tmp_path / "r/predictions.csv").at("recording")
    return rows, json.loads((tmp_path / "r/folds.json").read_text())["recording"]


@pytest.mark.parametrize("model", ["cnn_tiny", "forest"])
def test_several_classes_from_config_to_report(tag_set, tmp_path, model, capsys):
    words = ["--augment.mix=mixup", "--train.best_metric=average_precision"]
    trees = ["--model.name=forest", "--model.trees=30"]
    rows, summary = run(tmp_path, tag_set, *(trees if model == "forest" else words))
    assert rows.labels.shape == (len(rows.recording), 2) and rows.labels.sum(1).max() == 2
    expected = sk.average_precision_score(rows.labels, rows.probabilities)
    assert summary["pooled"]["average_precision"] == pytest.approx(expected)
    assert expected > 0.9
    decision = json.loads((tmp_path / "r/model.json").read_text())["decision"]
    assert set(decision["thresholds"]) == {"high", "low"} and decision["chosen_by"] == "f1"
    said = rows.probabilities >= [decision["thresholds"][name] for name in rows.classes]
    assert (said == rows.predicted).all()
    assert "mAP per recording" in capsys.readouterr().out
    assert "mAP" in (tmp_path / "r/report.html").read_text()


def test_epochs_of_several_classes_are_told_at_their_best_thresholds(tag_set, tmp_path):
    shard_set, config = open_set(tag_set), config_file(tmp_path, tag_set)
    numbers = np.arange(len(shard_set))
    timid = np.log(np.where(truth(shard_set, numbers), 0.3, 0.1))  # right, and never above one half
    found = [
        score(load([config, f"--report.threshold={by}"]), shard_set, numbers, timid)["macro_f1"]
        for by in ("macro_f1", "none")
    ]
    assert found == [1, 0]


def test_curves_of_several_classes_have_map_and_whole_epochs():
    told = {"loss": 0.5, "accuracy": 0.0, "micro_f1": 0.0, "average_precision": 0.4}
    told |= {"kind": "eval", "part": "val", "step": 3}
    figure = draw_curves([{"kind": "epoch", "step": 3, "train_loss": 0.7, "samples": 96}, told])
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}
    assert draw_curves([told]).axes[0].get_xlabel() == "trees"  # a forest sees no samples by steps
    score = figure.axes[1]
    assert [axes.get_title("left") for axes in figure.axes] == ["loss", "mAP"]
    assert score.lines[0].get_ydata().tolist() == [0.4]
    low, high = score.get_xlim()
    assert [tick for tick in score.get_xticks() if low < tick < high] == [1]


def test_a_distribution_loss_is_refused_for_several_classes(tag_set, tmp_path):
    config = config_file(tmp_path, tag_set, data={"protocol": "split"})
    for word, said in (
        ("--optim.loss=cross_entropy", "takes one class a sample"),
        ("--data.balance=class", "none of which can be drawn alone"),
        ("--optim.class_weights={loud: 2}", "no class 'loud'"),
        ("--optim.class_weights={low: 0, high: 0}", "nothing is learnt where all are 0"),
        ("--train.best_metric=eer", "train.best_metric=eer: for two classes"),
    ):
        code, told = forked(config, word)
        assert code == 2 and said in told and told.count("\n") == 1, told


@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_one_score_for_two_classes_from_config_to_report(small_parts, tmp_path, loss):
    words = ("--model.outputs=1", f"--optim.loss={loss}", "--augment.mix=mixup")
    rows, summary = run(tmp_path, small_parts, *words, "--optim.class_weights=balanced")
    assert rows.probabilities.sum(1) == pytest.approx(1)
    assert summary["pooled"]["roc_auc"] > 0.9
    info = json.loads((tmp_path / "r/model.json").read_text())
    assert info["model"]["outputs"] == 1 and info["decision"]["target"] in rows.classes


@pytest.fixture(scope="module")
def small_parts(tmp_path_factory):
    from conftest import write_tones

    folder = tmp_path_factory.mktemp("two")
    audio = write_tones(folder / "audio", 12, {"high": 2000.0, "low": 440.0})
    build(str(audio), str(folder / "set"), split="0.5,0.25,0.25", workers=1, **SETTINGS)
    return folder / "set"


def test_one_score_for_three_classes_is_refused(tone_set, tmp_path):
    code, told = forked(config_file(tmp_path, tone_set, model={"outputs": 1}))
    assert code == 2 and "one score is for two classes" in told
