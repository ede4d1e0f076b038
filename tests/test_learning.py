"""Learned, not memorised: labels that are shuffled give chance; a network beats a linear model."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, forked
from runs import records
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shards.build import build
from shards.index import open_set
from shards.read import Reader
from shards.sources.demo import synthesize

pytestmark = pytest.mark.usefixtures("no_pictures")
PER_CLASS, CLASSES = 40, 6
#: Of the validation fold's samples that a guess has right: four deviations above chance.
LIMIT = 1 / CLASSES + 4 * np.sqrt((1 - 1 / CLASSES) / CLASSES / (PER_CLASS * CLASSES // 5))
#: Masks of the config's width would hide half of these samples, half as many frames long.
WORDS = (
    "--data.protocol=kfold_nested", "--data.fold=0", "--data.n_fft=null", "--data.hop_length=null",
    "--augment.time_width=8", "--train.threads=1",
)  # fmt: skip


def built(audio: Path, shuffled: bool) -> Path:
    """A set whose folds are the sites; labels as they are or not."""
    files = sorted(audio.glob("*/site-*_[0-9]*"))
    labels = np.array([file.parent.name for file in files])
    labels = np.random.default_rng(0).permutation(labels) if shuffled else labels
    table = audio / f"labels-{shuffled}.csv"
    with open(table, "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("path", "label", "group"))
        for file, label in zip(files, labels, strict=True):
            rows.writerow((file.relative_to(audio), label, file.name[:6]))
    shards = audio.parent / f"set-{shuffled}"
    build(
        str(table), str(shards), sample_rate=16000, segment_seconds=2, n_mels=64, hop_length=512,
        folds=5, workers=1,
    )  # fmt: skip
    return shards


def trained(shards: Path) -> tuple[float, Mapping[str, float]]:
    """The last validation accuracy, and the scores of the test part's segments."""
    words = (f"--data.shards={shards}", f"--run.dir={shards.parent / shards.name}-runs", *WORDS)
    code, said = forked(str(ROOT / "configs/demo.yaml"), *words)
    assert code == 0, said
    fold = shards.parent / f"{shards.name}-runs/demo/fold-0"
    scores = json.loads((fold / "scores.json").read_text())
    return records(fold, "eval")[-1]["accuracy"], scores["segment"]


def linear(shards: Path) -> float:
    """The accuracy of a linear model of the means of bands, on the test fold, trained on the rest
    but the validation fold."""
    shard_set = open_set(shards)
    numbers = np.arange(len(shard_set))
    fold, labels = (shard_set.rows(numbers)[name] for name in ("fold", "label"))
    with Reader(shard_set) as reader:
        means = reader.read(numbers).astype(float).mean(axis=2)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(means[fold > 1], labels[fold > 1])
    return float(model.score(means[fold == 0], labels[fold == 0]))


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learning") / "audio"
    synthesize(out, 0, PER_CLASS, seconds=2)
    return out


@pytest.mark.slow
def test_shuffled_labels_give_chance(audio):
    found, _ = trained(built(audio, shuffled=True))
    assert found < LIMIT


@pytest.mark.slow
def test_what_is_learned_is_not_in_the_means(audio):
    shards = built(audio, shuffled=False)
    found, scored = trained(shards)
    assert found > LIMIT
    assert scored["accuracy"] > linear(shards) + 0.1
