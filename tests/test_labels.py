"""Samples of several classes: how they are numbered, dealt out, counted and read back."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import build_tones, lines, read_plainly, write_tone

from shards.index import SPLITS, open_set
from shards.labels import classes_of, label_sets, names
from shards.picture import contact_sheet
from shards.recording import Recording
from shards.split import assign
from shards.verify import verify

LABELS = ["rain", "dog", "dog;rain", "rain; dog", "dog; bird;rain"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose recordings have one to three of three classes."""
    folder = tmp_path_factory.mktemp("several")
    rows = ["path\tlabel"]
    for n, (label, _) in enumerate(itertools.product(LABELS, range(4))):
        write_tone(folder / "audio" / f"{n}.wav", 440.0, seconds=1 + n % 2, seed=n)
        rows.append(f"{n}.wav\t{label}")
    (folder / "audio" / "list.tsv").write_text("\n".join(rows))
    build_tones(folder / "audio" / "list.tsv", folder / "set", folds=2, group_from=None)
    return folder / "set"


def test_names_and_numbers() -> None:
    assert names("dog") == ("dog",) and names(" a b ") == (" a b ",)
    assert names("b; a;b;;") == ("b", "a") and names(" ; ") == ()
    assert classes_of(LABELS) == ["bird", "dog", "rain"]
    assert label_sets(LABELS, ["bird", "dog", "rain"]) == [[0, 1, 2], [1], [1, 2], [2]]
    assert label_sets(["b", "a"], ["a", "b"]) == [[0], [1]]


def test_targets_are_the_labels_as_given(several: Path) -> None:
    shard_set = open_set(several)
    assert shard_set.info["classes"] == ["bird", "dog", "rain"] and shard_set.is_multi_label
    assert shard_set.info["label_sets"] == [[0, 1, 2], [1], [1, 2], [2]]
    samples = read_plainly(several)
    found = shard_set.targets(np.arange(len(samples)))
    assert found.shape == (len(samples), 3) and found.dtype == bool
    for row, sample in zip(found, samples, strict=True):
        said = {name.strip() for name in sample["json"]["class"].split(";")}
        assert [name in said for name in ("bird", "dog", "rain")] == row.tolist()
    assert {sample["json"]["class"] for sample in samples} == set(LABELS)
    assert verify(str(several)) == []


def test_a_single_label_has_one_target(tone_set: Path) -> None:
    shard_set = open_set(tone_set)
    found = shard_set.targets(np.array([5, 0, 7]))
    assert (found.sum(axis=1) == 1).all() and not shard_set.is_multi_label
    assert found.argmax(axis=1).tolist() == shard_set.index["label"][[5, 0, 7]].tolist()


def test_stats_count_a_sample_once_and_counts_count_each_class(several: Path) -> None:
    shard_set = open_set(several)
    frames = shard_set.stats[..., 0, 0].sum(axis=(0, 1)) / shard_set.shape[1]
    segments = {label: 0 for label in LABELS}
    for line in lines(several):
        segments[line["label"]] += line["segments"]
    assert frames.sum() == len(shard_set.index) == sum(segments.values())
    first = {"rain": 2, "dog": 1, "dog;rain": 1, "rain; dog": 1, "dog; bird;rain": 0}
    assert frames.tolist() == [
        sum(n for label, n in segments.items() if first[label] == k) for k in range(3)
    ]
    counts = shard_set.info["counts"]
    assert counts["class"]["bird"]["recordings"] == 4
    assert counts["class"]["dog"]["recordings"] == counts["class"]["rain"]["recordings"] == 16
    assert sum(x["recordings"] for x in counts["fold"].values()) == 20


def test_each_class_is_drawn(several: Path, tmp_path: Path) -> None:
    contact_sheet(open_set(several), tmp_path / "show.png", per_class=2)
    assert (tmp_path / "show.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("grouped", [False, True])
def test_label_sets_are_spread_evenly(grouped: bool) -> None:
    random = np.random.default_rng(0)
    labels = ["a"] * 60 + ["b"] * 60 + ["a;b"] * 30 + ["b;a"] * 30 + ["a;c"] * 3 + ["c;b"] * 7
    header = {"frames": 1, "sample_rate": 1, "channels": 1}
    recordings = [
        Recording(
            path=str(n), label=label, group=f"{label}{n // 2}" if grouped else str(n), **header
        )
        for n, label in enumerate(random.permutation(labels).tolist())
    ]
    fold, split, _ = assign(recordings, 5, (0.6, 0.2, 0.2), 0)
    for name, count in (("a", 123), ("b", 127), ("c", 10)):
        has = np.array([name in names(r.label) for r in recordings])
        slack = 2.5 if grouped else 1.0
        assert np.abs(np.bincount(fold[has], minlength=5) - count / 5).max() <= slack
        shares = np.bincount(split[has], minlength=len(SPLITS)) - count * np.array([0.6, 0.2, 0.2])
        assert np.abs(shares).max() <= slack
    both = np.array([set(names(r.label)) == {"a", "b"} for r in recordings])
    assert np.abs(np.bincount(fold[both], minlength=5) - 12).max() <= (2 if grouped else 1)
