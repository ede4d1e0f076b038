"""Old sets of spectrograms become shard sets: what is kept, what is refused, what trains."""

import csv
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import hashes, lines, read_plainly
from legacy import CLASSES, M, T, clip, names, npy_set, npz_set, pickle_set, pkl_set
from processes import forked
from runs import config_file

from shards.__main__ import main
from shards.errors import UserError
from shards.index import open_set
from shards.merge import merge
from shards.sources.legacy import convert
from shards.verify import verify
from toolkit.protocol import check_fits, part_masks, select
from toolkit.schema import DataConfig

KNOWN = {"sample_rate": 8000, "n_fft": 512, "hop_length": 128, "fmin": 0.0, "fmax": 4000.0}


def stored(out: Path) -> dict[str, np.ndarray]:
    """The array of each recording, as plain webdataset reads it."""
    return {sample["json"]["recording"]: sample["npy"] for sample in read_plainly(out)}


def expected(old: Path) -> dict[str, tuple[str, str]]:
    """(class, part) by the stem of each clip."""
    return {name: (CLASSES[label], part) for name, label, part in names(16)}


@pytest.mark.parametrize("make", [npy_set, npz_set, pkl_set])
def test_tables_become_a_sound_shard_set(make, tmp_path):
    old, out = make(tmp_path / "old"), tmp_path / "set"
    before = hashes(old / "specs") if (old / "specs").exists() else hashes(old / "train")
    said = convert(str(old), str(out), **KNOWN)
    assert "taken as dB, each clip relative to its own maximum" in said
    assert verify(str(out)) == []
    told = {Path(x["path"]).stem: (x["label"], x["split"]) for x in lines(out)}
    assert told == expected(old)
    arrays = {Path(path).stem: values for path, values in stored(out).items()}
    for i, (name, label, _) in enumerate(names(16)):
        assert arrays[name].dtype == np.float16 and arrays[name].shape == (M, T)
        np.testing.assert_array_equal(arrays[name], clip(label, i).astype(np.float16))
    assert before == (hashes(old / "specs") if make is npz_set else hashes(old / "train"))
    shard_set = open_set(out)
    assert {k: shard_set.info["mel"][k] for k in KNOWN} == KNOWN
    assert shard_set.info["mel"]["reference"] == "clip maximum"
    check_fits(shard_set, DataConfig(shards=str(out), n_mels=M, **KNOWN))
    parts = select(shard_set, part_masks(shard_set, "split", 0))
    assert {name: len(part) for name, part in parts.items()} == {"train": 8, "val": 4, "test": 4}
    assert all(x["seconds"] == T * 128 / 8000 for x in lines(out))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickles_become_a_sound_shard_set(protocol, tmp_path):
    old, out = pickle_set(tmp_path / "old", protocol), tmp_path / "set"
    convert(str(old), str(out))
    assert verify(str(out)) == []
    info = open_set(out).info
    assert info["classes"] == ["dog", "rain"] and info["folds"] == ["1", "2", "3", "4"]
    assert info["mel"]["sample_rate"] is None and info["segment"]["seconds"] is None
    by_path = {x["path"]: x for x in lines(out)}
    for i in range(16):
        line = by_path[f"clip-{i:06d}"]
        assert (line["label"], line["fold"]) == (CLASSES[i % 2], str(i // 2 % 4 + 1))
        assert line["sample_rate"] is None
        np.testing.assert_array_equal(stored(out)[line["path"]], clip(i % 2, i).astype(np.float16))
    with pytest.raises(UserError, match="sample_rate: None there, 8000 asked"):
        check_fits(open_set(out), DataConfig(shards=str(out), sample_rate=8000))


def test_a_converted_set_is_told_of_and_shown(tmp_path, capsys):
    out = tmp_path / "set"
    assert main(["convert", str(npy_set(tmp_path / "old")), str(out)]) == 0
    assert main(["info", str(out)]) == 0 and main(["show", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Converted from metadata.csv: 16 segments of unknown s at unknown Hz" in said
    assert "16 bands from unknown to unknown Hz, window of unknown samples" in said
    assert "clipped" not in said and {x["clipped"] for x in lines(out)} == {None}
    assert main(["verify", str(out), f"--audio={tmp_path / 'old'}"]) == 2
    assert "converted, not built from audio" in capsys.readouterr().err
    assert (out / "show.png").stat().st_size > 10_000
    for there, here in (("train/s1-08", "test/s1-14"), ("train/s1-09", "test/s1-15")):  # copies
        shutil.copy(tmp_path / "old" / f"{there}.npy", tmp_path / "old" / f"{here}.npy")
    for words in ([], ["--sample_rate=8000", "--hop_length=128"]):
        assert main(["convert", str(tmp_path / "old"), str(out), "--overwrite", *words]) == 0
        assert main(["duplicates", str(out)]) == 0
        said = capsys.readouterr()
        assert "2 exact and 0 near pairs, 2 across" in said.out, words


@pytest.mark.usefixtures("no_pictures")
def test_a_converted_set_trains(tmp_path):
    out = tmp_path / "set"
    convert(str(npy_set(tmp_path / "old")), str(out))
    config = config_file(
        tmp_path, out, data={"protocol": "split", "n_mels": M}, run={"name": "old"},
        train={"batch_size": 4, "max_steps": 2, "log_every": 1},
    )  # fmt: skip
    code, errors = forked(config)
    assert code == 0, errors[-2000:]
    scores = json.loads((tmp_path / "runs/old/scores.json").read_text())
    assert np.isfinite(scores["recording"]["loss"])


def test_linear_power_has_to_be_said_and_becomes_decibels(tmp_path):
    old, out = npy_set(tmp_path / "old", "power"), tmp_path / "set"
    with pytest.raises(UserError, match="none negative: say --scale=power"):
        convert(str(old), str(out))
    assert not out.exists()
    convert(str(old), str(out), scale="power")
    arrays = {Path(path).stem: values for path, values in stored(out).items()}
    np.testing.assert_allclose(arrays["s0-00"], clip(0, 0), atol=0.04)  # float16 near -80
    assert open_set(out).info["mel"]["reference"] == 1.0
    assert verify(str(out)) == []


def test_frames_are_cropped_or_padded_with_the_floor(tmp_path):
    old, out = npy_set(tmp_path / "old"), tmp_path / "set"
    longer = clip(1, 99, T + 5)
    np.save(old / "train/s0-01.npy", longer)
    with pytest.raises(UserError, match=rf"s0-01.npy' is {M} x {T + 5}, .* {M} x {T}; .*--frames"):
        convert(str(old), str(out))
    convert(str(old), str(out), frames=T + 2)
    arrays = stored(out)
    np.testing.assert_array_equal(arrays["train/s0-01.npy"], longer[:, : T + 2].astype(np.float16))
    lowest = min(np.load(file).min() for file in old.rglob("*.npy"))
    short = arrays["train/s0-00.npy"]
    np.testing.assert_array_equal(short[:, :T], clip(0, 0).astype(np.float16))
    assert (short[:, T:] == np.float16(lowest)).all()
    assert verify(str(out)) == []


def test_arrays_that_no_row_names_are_told_of(tmp_path, caplog):
    old = npz_set(tmp_path / "old")
    np.savez(old / "specs/loose.npz", mel=clip(0, 0))
    convert(str(old), str(tmp_path / "set"))
    assert "1 array that no row names, such as specs/loose.npz" in caplog.text
    assert len(lines(tmp_path / "set")) == 16


def test_what_cannot_be_read_costs_itself_only(tmp_path):
    old, out = npy_set(tmp_path / "old"), tmp_path / "set"
    (old / "train/s0-00.npy").unlink()
    (old / "train/s0-01.npy").write_bytes(b"\x93NUMPY no more")
    np.save(old / "train/s0-02.npy", np.full((M, T), np.nan))
    np.save(old / "train/s0-03.npy", np.array([{}]), allow_pickle=True)
    convert(str(old), str(out))
    assert verify(str(out)) == []
    with open(out / "rejected.csv", newline="") as text:
        reasons = {Path(row["path"]).stem: row["reason"] for row in csv.DictReader(text)}
    assert reasons.keys() == {"s0-00", "s0-01", "s0-02", "s0-03"}
    assert reasons["s0-00"] == "missing" and "finite" in reasons["s0-02"]
    assert "allow_pickle" in reasons["s0-03"]  # said, not unpickled


def test_a_pickle_of_one_clip_runs_nothing(tmp_path):
    old, out = pkl_set(tmp_path / "old"), tmp_path / "set"
    ran = tmp_path / "ran"
    (old / "train/s0-00.pkl").write_bytes(f"cos\nmkdir\n(V{ran}\ntR.".encode())
    (old / "train/s0-01.pkl").write_bytes(pickle.dumps({"a": np.eye(2), "b": np.eye(2)}))
    (old / "train/s0-02.pkl").write_bytes(pickle.dumps("no array"))
    convert(str(old), str(out))
    assert verify(str(out)) == [] and not ran.exists()
    with open(out / "rejected.csv", newline="") as text:
        reasons = {Path(row["path"]).stem: row["reason"] for row in csv.DictReader(text)}
    assert "holds os.mkdir" in reasons["s0-00"] and reasons["s0-01"].startswith("2 spectrograms")
    assert reasons.keys() == {"s0-00", "s0-01", "s0-02"}


def test_a_group_on_two_sides_is_refused(tmp_path):
    old = npy_set(tmp_path / "old")
    with pytest.raises(UserError, match="group 's0' is in splits"):
        convert(str(old), str(tmp_path / "set"), group_from=r"^(s\d)")
    pickles = pickle_set(tmp_path / "pickles")
    (pickles / "folds.pkl").unlink()
    convert(str(pickles), str(tmp_path / "set"), folds=2, group_from=r"-(\d{5})\d$")
    sides = {(x["group"], x["fold"]) for x in lines(tmp_path / "set")}
    assert {group for group, _ in sides} == {"00000", "00001"} and len(sides) == 2


def test_the_same_words_give_the_same_bytes_and_others_are_refused(tmp_path, monkeypatch):
    old, out, again = npy_set(tmp_path / "old"), tmp_path / "set", tmp_path / "again"
    convert(str(old), str(out), shard_size="3KB")
    assert len(open_set(out).shard_paths) > 3
    assert "nothing to do" in convert(str(old), str(out), shard_size="3KB")
    with pytest.raises(UserError, match="n_fft: None there, 512 asked"):
        convert(str(old), str(out), n_fft=512, shard_size="3KB")
    with monkeypatch.context() as stopped:
        stopped.setattr("shards.sources.legacy.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(str(old), str(again), shard_size="3KB")
    with pytest.raises(UserError, match="start the same `convert` again"):
        merge(str(again))
    convert(str(old), str(again), shard_size="3KB")
    assert hashes(out) == hashes(again)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"scale": "dB"}, "--scale=dB: db or power"),
        ({"scale": "power"}, "power is never negative"),
        ({"frames": 0}, "--frames=0: has to be above 0"),
        ({"sample_rate": -1}, "--sample_rate=-1: has to be above 0"),
        ({"folds": 1}, "needs at least 2"),
        ({"group_from": "x(y)"}, "does not match"),
    ],
)
def test_words_that_are_refused(tmp_path, words, told):
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        convert(str(npy_set(tmp_path / "old")), str(tmp_path / "set"), **words)
    assert not (tmp_path / "set").exists()


def test_sets_that_are_refused(tmp_path):
    old, out = npy_set(tmp_path / "old"), str(tmp_path / "set")
    with pytest.raises(UserError, match="no set to convert"):
        convert(str(old / "train"), out)
    text = (old / "metadata.csv").read_text()
    (old / "metadata.csv").write_text(text.replace("filename,", "thing,"))
    with pytest.raises(UserError, match="no column for the path"):
        convert(str(old), out)
    (old / "metadata.csv").write_text(text + "s0-00.npy,dog,train\n")
    with pytest.raises(UserError, match="is there twice"):
        convert(str(old), out)
    (old / "metadata.csv").write_text(text.replace("s0-00.wav,dog", "s0-00.wav,;"))
    with pytest.raises(UserError, match=r"s0-00\.npy' has no label"):
        convert(str(old), out)
    (old / "metadata.csv").write_text(text.replace("s0-01.wav,rain,train", "s0-01.wav,rain,"))
    (old / "train" / "s0-01.npy").rename(old / "s0-01.npy")  # or its folder would tell
    with pytest.raises(UserError, match=r"s0-01\.npy' has no split; fill it in"):
        convert(str(old), out)
    (old / "metadata.csv").write_text(text.replace("dog", "ñandú"), encoding="latin-1")
    with pytest.raises(UserError, match="not a csv file in UTF-8"):
        convert(str(old), out)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("labels", [0, 1], "2 values for the 16 of features.pkl"),
        ("labels", 7, "1 values for the 16"),
        ("labels", np.array(7), "1 values for the 16"),
        ("labels", [None] * 16, "has no label; fill it in"),
        ("labels", [float("nan"), 1.0] * 8, "has no label; fill it in"),
        ("folds", 7, "1 values for the 16"),
        ("class_mapping", 7, "a int; expected names by their labels"),
        ("class_mapping", {"dog": 0}, "no name for label '1'; add it"),
    ],
)
def test_pickles_that_are_refused(tmp_path, name, content, told):
    pickles = pickle_set(tmp_path / "pickles")
    (pickles / f"{name}.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=re.escape(told)):
        convert(str(pickles), str(tmp_path / "set"))


def test_arrays_and_labels_as_keras_and_python_2_left_them(tmp_path):
    pickles = pickle_set(tmp_path / "pickles")
    arrays = np.stack([clip(n % 2, n) for n in range(16)])[..., None]  # (N, M, T, 1)
    (pickles / "features.pkl").write_bytes(pickle.dumps(arrays))
    (pickles / "labels.pkl").write_bytes(pickle.dumps([b"dog", b"rain"] * 8))
    (pickles / "folds.pkl").write_bytes(pickle.dumps([n // 2 % 2 for n in range(16)]))
    (pickles / "class_mapping.pkl").unlink()
    convert(str(pickles), str(tmp_path / "set"))
    found = open_set(tmp_path / "set")
    assert found.info["classes"] == ["dog", "rain"] and found.shape == (M, T)
