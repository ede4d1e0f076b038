"""Learned, not memorised: labels that are shuffled give chance; a network beats a linear model."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from processes import forked
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shards.build import build
from shards.index import open_set
from shards.read import Reader
from shards.sources.demo import synthesize

PER_CLASS, SECONDS = 60, 3
WORDS = (
    "--train.epochs=30", "--train.batch_size=16", "--model.norm_batch=16", "--train.threads=1",
    *(f"--data.{key}=null" for key in ("n_mels", "n_fft", "hop_length", "segment_seconds")),
)  # fmt: skip


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learning") / "audio"
    synthesize(out, 0, PER_CLASS, kind="drone", seconds=SECONDS)
    return out


def built(audio: Path, shuffled: bool) -> Path:
    """A set whose places 0 to 4 train, 5 and 6 validate, 7 to 9 test; labels as they are or not."""
    files = sorted(audio.rglob("*.wav"))
    labels = np.array([file.parent.name for file in files])
    labels = np.random.default_rng(0).permutation(labels) if shuffled else labels
    table = audio / f"labels-{shuffled}.csv"
    with open(table, "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("path", "label", "split"))
        for file, label in zip(files, labels, strict=True):
            place = int(file.name.removeprefix("place-")[0])
            part = "train" if place < 5 else "val" if place < 7 else "test"
            rows.writerow((file.relative_to(audio), label, part))
    shards = audio.parent / f"set-{shuffled}"
    build(
        str(table), str(shards), sample_rate=16000, segment_seconds=1, n_mels=64, n_fft=2048,
        hop_length=512, workers=1,
    )  # fmt: skip
    return shards


def trained(shards: Path) -> tuple[float, Mapping[str, float]]:
    """The last validation accuracy, and the scores of the test part's segments."""
    runs = shards.parent / f"runs-{shards.name}"
    words = (f"--data.shards={shards}", f"--run.dir={runs}", *WORDS)
    code, said = forked("configs/drone_cnn_tiny.yaml", *words)
    assert code == 0, said
    run = runs / "drone_cnn_tiny"
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    evaluated = [line["accuracy"] for line in lines if line["kind"] == "eval"]
    return evaluated[-1], json.loads((run / "scores.json").read_text())["segment"]


@pytest.mark.slow
def test_what_is_learned_is_in_the_labels_and_not_in_the_means(audio):
    true, scored = trained(built(audio, shuffled=False))
    chance, _ = trained(built(audio, shuffled=True))
    segments = 3 * PER_CLASS * SECONDS // 5  # of the validation part
    assert chance < 1 / 3 + 4 * np.sqrt(2 / 9 / segments) < true

    shard_set = open_set(audio.parent / "set-False")
    rows = shard_set.rows(np.arange(len(shard_set)))
    with Reader(shard_set) as reader:
        means = reader.read(np.arange(len(shard_set))).astype(float).mean(axis=2)
    train, test = (rows["split"] == code for code in (0, 2))
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    linear.fit(means[train], rows["label"][train])
    baseline = linear.score(means[test], rows["label"][test])
    assert scored["accuracy"] > baseline + 0.1
