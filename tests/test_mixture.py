"""Several shard sets as one, some classes of a set, and trainings on them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TONES, build_tones, write_tones
from processes import forked
from runs import config_file

from shards.errors import UserError
from shards.index import open_set
from shards.mixture import Mixture
from shards.read import Reader
from toolkit.data import make_groups, make_order, open_data
from toolkit.protocol import normalisation, part_masks, select
from toolkit.schema import DataConfig

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of the same name, whose classes are other-named: one in common, in another order."""
    folder = tmp_path_factory.mktemp("second")
    audio = write_tones(folder / "audio", 8, {"noise": None, "mid": 900.0})
    build_tones(audio, folder / "set", folds=4)
    return folder / "set"


def data(*paths, **words):
    shards = [{"path": str(path)} | ({"weight": w} if w else {}) for path, w in paths]
    return DataConfig(shards=shards, **({"protocol": "kfold"} | words))


def test_a_mixture_gives_the_samples_and_rows_of_its_sets(tone_set, second):
    names = ["noise", "high", "mid", "low"]
    mixture = open_data(data((tone_set, 2), (second, 1), classes=names))
    sets = [open_set(tone_set), open_set(second)]
    assert isinstance(mixture, Mixture) and mixture.class_names == names
    assert len(mixture) == sum(map(len, sets))
    numbers = np.random.default_rng(0).permutation(len(mixture))
    rows = mixture.rows(numbers)
    known = list(mixture.recordings())
    assert len({line["path"] for line in known}) == len(known)  # no two of one name
    some = [len(known) - 1, 0]  # as a loss that is not finite asks for them
    assert mixture.lines_of(some) == {n: known[n] for n in some}
    with Reader(mixture) as reader, Reader(sets[0]) as a, Reader(sets[1]) as b:
        for number, row, got in zip(numbers, rows, reader.read(numbers), strict=True):
            of, local = (0, number) if number < len(sets[0]) else (1, number - len(sets[0]))
            assert np.array_equal(got, (a, b)[of].read(np.array([local]))[0])
            own = sets[of].index[local]
            label = sets[of].class_names[own["label"]]
            assert mixture.class_names[row["label"]] == label
            line = known[row["recording"]]
            assert line["label"] == label and line["path"].startswith(f"set-{of + 1}/")
            path = mixture.shard_file(int(row["shard"]))
            assert path == sets[of].shard_paths[own["shard"]]
            assert path == mixture.shard_paths[row["shard"]]
            assert (row["fold"], row["xxh3"]) == (own["fold"], own["xxh3"])


def test_sets_are_drawn_by_weight_and_evaluated_once(tone_set, second):
    config = data((tone_set, 3), (second, 1), classes=["high", "low", "noise", "mid"])
    mixture = open_data(config)
    parts = select(mixture, part_masks(mixture, "kfold", 2), make_groups(mixture, config))
    order = make_order(mixture, parts["train"], config, 40, 1)
    numbers = parts["train"][order.batches(range(50), range(40)).ravel()]
    assert abs(np.mean(numbers < len(open_set(tone_set))) - 0.75) < 2 / 2000
    folds = mixture.rows(np.arange(len(mixture)))["fold"]
    assert np.array_equal(parts["test"][:], np.flatnonzero(folds == 2))
    assert set(numbers.tolist()) == set(np.flatnonzero(folds != 2).tolist())


def test_only_some_classes_numbered_in_the_order_given(tone_set):
    whole = open_set(tone_set)
    some = open_data(DataConfig(shards=str(tone_set), protocol="kfold", classes=["noise", "high"]))
    masks = part_masks(some, "kfold", 0)
    parts = select(some, masks)
    expected = np.isin(whole.index["label"], [whole.class_names.index(c) for c in some.class_names])
    taken = np.sort(np.concatenate([parts["train"][:], parts["test"][:]]))
    assert np.array_equal(taken, np.flatnonzero(expected))
    for place, label in enumerate(("noise", "high")):
        mine = taken[some.rows(taken)["label"] == place]
        assert set(whole.index["label"][mine]) == {whole.class_names.index(label)}
    with Reader(whole) as reader:  # statistics of these classes alone
        values = reader.read(parts["train"][:]).astype(np.float64)
    mean, std = normalisation(some, masks["train"], "band")
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(std, values.std(axis=(0, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    "words, message",
    [
        ({}, r"differ in their classes \(high, low, mid\)"),
        ({"classes": ["nois"]}, "data.classes: no class 'nois'; did you mean noise"),
        ({"classes": ["noise", "noise"]}, "named twice"),
        ({"classes": ["noise"]}, "a classifier needs at least two"),
    ],
)
def test_sets_that_do_not_agree_are_one_line(tone_set, second, words, message):
    with pytest.raises(UserError, match=message):
        open_data(data((tone_set, None), (second, None), **words))


def test_other_settings_folds_and_weights_are_named(tone_set, tmp_path):
    audio = write_tones(tmp_path / "audio", 4, TONES)
    build_tones(audio, tmp_path / "other", folds=2, n_mels=16)
    with pytest.raises(UserError, match=r"n_mels: 32 and 16"):
        open_data(data((tone_set, None), (tmp_path / "other", None)))
    build_tones(audio, tmp_path / "two", folds=2)
    with pytest.raises(UserError, match="have different folds"):
        open_data(data((tone_set, None), (tmp_path / "two", None)))
    mixed = open_data(data((tone_set, None), (tmp_path / "two", None), protocol="split"))
    assert mixed.folds == [] and not mixed.rows(np.arange(len(mixed)))["fold"].any()
    whole = [open_set(path).stats.sum() for path in (tone_set, tmp_path / "two")]
    assert mixed.stats.sum() == pytest.approx(sum(whole))
    shutil.copytree(tone_set, tmp_path / "copy")
    for again in (tone_set, tmp_path / "copy"):
        with pytest.raises(
            UserError, match=r"the same samples \(samples-000000.tar\), which would"
        ):
            open_data(data((tone_set, 1), (again, 2)))
    with pytest.raises(UserError, match="every set needs a weight"):
        open_data(data((tone_set, 1), (tmp_path / "two", None)))
    with pytest.raises(UserError, match="every set needs a weight"):
        open_data(data((tone_set, 1), (tmp_path / "two", float("inf"))))


@pytest.mark.parametrize(
    "words, message",
    [
        ({"balance": "class", "shuffle": "window"}, "use data.shuffle=full"),
        ({"weights": {"hihg": 2.0}}, "no class 'hihg'; did you mean high"),
        ({"weights": {"high": -1.0}}, "high: -1.0; a finite number, at least 0"),
        ({"weights": {"high": float("inf")}}, "high: inf; a finite number"),
        ({"weights": "nowhere.npy"}, "nowhere.npy: .* save it by numpy.save"),
        ({"weights": "WRONG"}, "expected \\(54,\\) numbers, one a sample"),
        ({"weights": "NEGATIVE"}, "negative or not finite"),
        ({"weights": "ZERO"}, "all weights of the training part are 0"),
        ({"weights": "ZERO", "balance": "class"}, "leave out data.balance"),
        ({"last_batch": "drop", "samples_per_epoch": 3}, "no whole batch of 8"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(tone_set, tmp_path, words, message):
    made = {"WRONG": np.ones(3), "NEGATIVE": -np.ones(54), "ZERO": np.zeros(54)}
    if words.get("weights") in list(made):
        file = tmp_path / "weights.npy"
        np.save(file, made[words["weights"]])
        words = words | {"weights": str(file)}
    config = DataConfig(shards=str(tone_set), protocol="kfold", **words)
    shard_set = open_data(config)
    parts = select(shard_set, part_masks(shard_set, "kfold", 0), make_groups(shard_set, config))
    with pytest.raises(UserError, match=message) as error:
        make_order(shard_set, parts["train"], config, 8, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("balance", ["none", "class"])
def test_weights_of_classes_multiply_their_shares(tone_set, balance):
    config = DataConfig(
        shards=str(tone_set), protocol="kfold", balance=balance, weights={"high": 3, "low": 0}
    )
    shard_set = open_data(config)
    parts = select(shard_set, part_masks(shard_set, "kfold", 0), make_groups(shard_set, config))
    order = make_order(shard_set, parts["train"], config, 100, 0)
    labels = shard_set.rows(parts["train"][order.batches(range(40), range(100)).ravel()])["label"]
    found = np.bincount(labels, minlength=3) / 4000
    assert shard_set.class_names == ["high", "low", "noise"]
    counts = np.bincount(shard_set.rows(parts["train"][:])["label"]) if balance == "none" else 1
    wanted = np.array([3, 0, 1]) * counts
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=2 / 4000)


def test_weights_of_samples_come_from_a_file(tone_set, tmp_path):
    weights = np.arange(54.0)
    np.save(tmp_path / "w.npy", weights)
    config = DataConfig(
        shards=str(tone_set), protocol="kfold", weights=str(tmp_path / "w.npy"),
        samples_per_epoch=2000,
    )  # fmt: skip
    shard_set = open_data(config)
    train_part = select(shard_set, part_masks(shard_set, "kfold", 0))["train"]
    order = make_order(shard_set, train_part, config, 100, 0)
    numbers = train_part[order.batches(range(20), range(100)).ravel()]
    wanted = 2000 * weights / weights[train_part[:]].sum()
    counts = np.bincount(numbers, minlength=54)
    assert np.abs(counts - wanted)[train_part[:]].max() < 1.01


def test_a_training_on_two_sets_from_end_to_end(tone_set, second, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tone_set, moved)
    data = {
        "shards": [{"path": str(tone_set), "weight": 2}, {"path": str(second), "weight": 1}],
        "classes": ["low", "high", "mid", "noise"], "balance": "class", "fraction": 0.6,
        "samples_per_epoch": 24,
    }  # fmt: skip

    def started():
        words = {"run": {"name": "both"}, "data": data, "train": {"epochs": 2}}
        return forked(config_file(tmp_path, "", **words))

    code, errors = started()
    assert code == 0, errors[-2000:]
    run = tmp_path / "runs/both/fold-0"
    assert json.loads((run / "scores.json").read_text())["steps"] == 6
    with open(run / "predictions.csv") as lines:
        rows = [row for row in csv.DictReader(lines) if row["level"] == "segment"]
    sets = [open_set(path) for path in (tone_set, second)]
    assert len(rows) == sum(np.count_nonzero(s.index["fold"] == 0) for s in sets)
    assert {row["recording"].split("/")[0] for row in rows} == {"set-1", "set-2"}
    # A set may be moved between two starts, its weight may not change.
    data["shards"][0]["path"] = str(moved)
    code, errors = started()
    assert code == 0 and "is finished" in errors
    data["shards"][0]["weight"] = 5
    code, errors = started()
    assert code == 2 and "data.shards: " in errors
