"""Old sets of spectrograms become shard sets: what is kept, what is refused, what trains."""

import csv
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import hashes, lines, read_plainly
from processes import forked

from shards.__main__ import main
from shards.errors import UserError
from shards.index import open_set
from shards.merge import merge
from shards.sources.legacy import convert
from shards.sources.unpickle import load
from shards.verify import verify
from toolkit.protocol import check_fits, part_masks, select
from toolkit.schema import DataConfig

M, T = 16, 20
KNOWN = {"sample_rate": 8000, "n_fft": 512, "hop_length": 128, "fmin": 0.0, "fmax": 4000.0}
CLASSES = ("dog", "rain")


def clip(label: int, seed: int, frames: int = T) -> np.ndarray:
    """(M, T) float32 dB, not below -80, its maximum 0; a class is a band."""
    noise = -60 + 5 * np.random.default_rng(seed).standard_normal((M, frames))
    noise[4 * label + 2] += 50
    return np.maximum(noise - noise.max(), -80).astype(np.float32)


def names(n: int = 12) -> list[tuple[str, int, str]]:
    """(name, label, part); each part has both classes."""
    parts = ("train", "train", "val", "test")
    return [(f"s{i // 8}-{i:02d}", i % 2, parts[i // 2 % 4]) for i in range(n)]


def table(file: Path, rows: list[dict[str, str]]) -> None:
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def npy_set(folder: Path, scale: str = "db") -> Path:
    """metadata.csv and a folder of .npy; every other array is (1, M, T)."""
    rows = []
    for i, (name, label, part) in enumerate(names(16)):
        values = clip(label, i) if scale == "db" else 10 ** (clip(label, i) / 10)
        (folder / part).mkdir(parents=True, exist_ok=True)
        np.save(folder / part / f"{name}.npy", values[None] if i % 2 else values)
        rows.append({"filename": f"{name}.wav", "label": CLASSES[label], "split": part})
    table(folder / "metadata.csv", rows)
    return folder


def npz_set(folder: Path) -> Path:
    """train.csv, val.csv, test.csv and a folder of .npz."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "val": [], "test": []}
    (folder / "specs").mkdir(parents=True)
    for i, (name, label, part) in enumerate(names(16)):
        np.savez_compressed(folder / f"specs/{name}.npz", mel=clip(label, i), label=label)
        rows[part].append({"path": f"specs/{name}.npz", "class": CLASSES[label]})
    for part, part_rows in rows.items():
        table(folder / f"{part}.csv", part_rows)
    return folder


def pickle_set(folder: Path, protocol: int = 4) -> Path:
    """features.pkl, labels.pkl, folds.pkl, class_mapping.pkl."""
    folder.mkdir()
    content = {
        "features": [clip(i % 2, i) for i in range(16)],
        "labels": np.arange(16) % 2,
        "folds": [i // 2 % 4 + 1 for i in range(16)],
        "class_mapping": {"dog": 0, "rain": np.int64(1)},
    }
    for name, value in content.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(value, protocol))
    return folder


def stored(out: Path) -> dict[str, np.ndarray]:
    """The array of each recording, as plain webdataset reads it."""
    return {sample["json"]["recording"]: sample["npy"] for sample in read_plainly(out)}


def expected(old: Path) -> dict[str, tuple[str, str]]:
    """(class, part) by the stem of each clip."""
    return {name: (CLASSES[label], part) for name, label, part in names(16)}


@pytest.mark.parametrize("make", [npy_set, npz_set])
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


def test_a_converted_set_trains(tmp_path):
    out = tmp_path / "set"
    convert(str(npy_set(tmp_path / "old")), str(out))
    values = {
        "run": {"name": "old", "dir": str(tmp_path / "runs")},
        "data": {"shards": str(out), "protocol": "split", "n_mels": M},
        "model": {"name": "cnn_tiny", "norm_batch": 4},
        "train": {"batch_size": 4, "max_steps": 2, "log_every": 1, "threads": 1},
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(values))
    code, errors = forked(str(tmp_path / "old.yaml"))
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


# --- pickles -----------------------------------------------------------------------------------


class Evil:
    """Would run a command when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


class Sly(Evil):
    """Would do so by the builtins."""

    def __reduce__(self):
        return eval, (f"open({str(self.file)!r}, 'w')",)


@pytest.mark.parametrize(("kind", "named"), [(Evil, "posix.system"), (Sly, "builtins.eval")])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_named_and_does_not_run(tmp_path, capsys, kind, named, protocol):
    old, mark = pickle_set(tmp_path / "old"), tmp_path / "ran"
    hostile = pickle.dumps([1, {"a": kind(mark)}], protocol)
    (old / "labels.pkl").write_bytes(hostile)
    assert main(["convert", str(old), str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    told = named if protocol > 2 else named.replace("builtins", "__builtin__")
    assert named in error or told in error
    assert "labels.pkl" in error and error.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "set").exists()
    pickle.loads(hostile)  # in earnest it runs
    assert mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        [1, 2.5, "a", True, None, (b"x", {"k": [np.float32(3)]})],
        OrderedDict(a=np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.array([np.zeros((2, 3)), np.ones((3, 4))], dtype=object),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["dog", "rain"]),
    ],
)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_values_come_back(tmp_path, value, protocol):
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps(value, protocol))
    assert repr(load(file)).replace("Array(", "array(") == repr(value)


class Forged:
    """An array with a state of one's own."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        return np.array(0).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


class ForgedDtype:
    """Objects whose flags say that they may be read from bytes: pointers at will."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    "forged",
    [
        Forged(1, (2,), ForgedDtype(), False, b"A" * 16),
        Forged(1, (9,), np.dtype("O"), False, [1]),
        Forged(1, (9,), np.dtype("f8"), False, b"A" * 8),
        Forged(1, (-1, -1), np.dtype("f8"), False, b"A" * 8),
        Forged(1, (1,), np.dtype([("a", "f8")]), False, b"A" * 8),
    ],
)
def test_forged_arrays_are_refused(tmp_path, forged):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(forged, 4))
    with pytest.raises(UserError, match=r"x\.pkl"):
        load(tmp_path / "x.pkl")


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", b"cnumpy\nndarray\n."[:-1]])
def test_a_damaged_pickle_is_one_line(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(UserError, match="no pickle that can be read"):
        load(tmp_path / "x.pkl")


# --- refusals ----------------------------------------------------------------------------------


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
    pickles = pickle_set(tmp_path / "pickles")
    (pickles / "labels.pkl").write_bytes(pickle.dumps([0, 1]))
    with pytest.raises(UserError, match=r"2 values for the 16 of features.pkl"):
        convert(str(pickles), out)
