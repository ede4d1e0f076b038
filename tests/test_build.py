"""From audio to a shard set: what is refused, what is told, what is replaced."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import (
    BESIDE_TARS,
    RATE,
    build_tones,
    hashes,
    lines,
    read_plainly,
    write_tone,
    write_tones,
)

from shards.errors import UserError
from shards.index import open_set
from shards.plan import parse_size


def test_other_settings_and_other_audio_are_refused(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    build_tones(small, out, folds=2)
    before = hashes(out)
    with pytest.raises(UserError) as error:
        build_tones(small, out, folds=2, n_mels=16, overlap=0.5)
    assert "n_mels: 32 there, 16 asked" in str(error.value)
    assert "overlap: 0.0 there, 0.5 asked" in str(error.value)
    write_tone(small / "low" / "low-g9-0.wav", 440.0)
    with pytest.raises(UserError, match="other audio files"):
        build_tones(small, out, folds=2)
    assert hashes(out) == before


def test_overwrite_removes_its_own_only(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    build_tones(small, out, folds=2, shard_size="10KB")
    kept = {"shown.png", "samples-notes.txt", "samples-000000.tar.bak"}
    for name in kept:
        (out / name).write_text("mine")
    build_tones(small, out, folds=2, shard_size="1GB", n_mels=16, overwrite=True)
    names = {f.name for f in out.iterdir()}
    assert names == {*BESIDE_TARS, *kept, "samples-000000.tar"}
    assert all((out / name).read_text() == "mine" for name in kept)
    assert open_set(out).shape[0] == 16


def test_a_folder_of_something_else_is_left_alone(small: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"not empty and no shard set \('chapter.tex'"):
            build_tones(small, tmp_path / "thesis", folds=2, overwrite=overwrite)
    assert hashes(tmp_path / "thesis").keys() == {"chapter.tex"}


def test_silent_and_broken_files_are_listed(small: Path, tmp_path: Path) -> None:
    soundfile.write(small / "low" / "low-g0-8.wav", np.zeros(RATE), RATE)
    (small / "high" / "high-g0-8.flac").write_bytes(b"fLaC not so")
    said = build_tones(small, tmp_path / "set", folds=2)
    assert "rejected    2" in said and str(tmp_path / "set" / "rejected.csv") in said
    table = (tmp_path / "set" / "rejected.csv").read_text().splitlines()
    assert table[0] == "path,reason" and len(table) == 3
    assert "low/low-g0-8.wav,silent" in table
    info = open_set(tmp_path / "set").info
    assert (info["recordings"], info["rejected"]) == (8, 2)
    index = np.load(tmp_path / "set" / "index.npy")
    assert (
        set(index["recording"].tolist())
        == set(range(8))
        == set(range(len(lines(tmp_path / "set"))))
    )


@pytest.mark.parametrize("broken", [True, False])
def test_a_class_without_a_usable_file_is_named(small: Path, tmp_path: Path, broken: bool) -> None:
    for file in (small / "low").iterdir():
        file.write_bytes(b"no audio") if broken else soundfile.write(file, np.zeros(RATE), RATE)
    with pytest.raises(UserError, match="class 'low': none of its files can be used"):
        build_tones(small, tmp_path / "set", folds=2)
    assert not (tmp_path / "set").exists() or not list((tmp_path / "set").iterdir())


def test_a_shard_may_be_empty(tmp_path: Path) -> None:
    audio = write_tones(tmp_path / "audio", 4, {"high": 2000.0, "low": 440.0})
    silent = sorted((audio / "low").iterdir())[:2]
    for file in silent:
        soundfile.write(file, np.zeros(RATE), RATE)
    build_tones(audio, tmp_path / "set", folds=2, shard_size="1B")  # a recording each
    shards = open_set(tmp_path / "set").info["shards"]
    assert sorted(x["samples"] for x in shards) == [0, 0, 1, 1, 1, 2, 2, 2]
    assert len(read_plainly(tmp_path / "set")) == 9


def test_default_is_five_folds_and_all_train(tmp_path: Path) -> None:
    audio = write_tones(tmp_path / "audio", 10, {"high": 2000.0, "low": 440.0})
    build_tones(audio, tmp_path / "set", folds=None)
    info = open_set(tmp_path / "set").info
    assert info["folds"] == ["1", "2", "3", "4", "5"] and info["split"]["folds"] == 5
    assert info["counts"]["split"]["train"]["segments"] == info["samples"]


def test_given_folds_and_no_folds(tmp_path: Path) -> None:
    audio = write_tones(tmp_path / "audio", 4, {"high": 2000.0, "low": 440.0})
    build_tones(audio, tmp_path / "given", folds=None, fold_from=r"g(\d)")
    assert all(x["fold"] == x["path"].split("-g")[1][0] for x in lines(tmp_path / "given"))
    build_tones(audio, tmp_path / "parts", folds=None, split="0.5,0,0.5")
    info = open_set(tmp_path / "parts").info
    assert info["folds"] == [] and info["counts"]["fold"] == {}
    assert {x["json"]["fold"] for x in read_plainly(tmp_path / "parts")} == {None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"folds": 1}, "--folds=1"),
        ({"folds": 5}, "class 'high' has 2 groups"),
        ({"folds": 2, "fold_from": "x"}, "exclude each other"),
        ({"split": "0.5,0.5,0", "split_from": "x"}, "exclude each other"),
        ({"split": "0.5,0.5"}, "three shares"),
        ({"overlap": 1.0}, "--overlap=1.0"),
        ({"overlap": 0.999999}, "--overlap=0.999999"),
        ({"segment_seconds": 0.0}, "--segment_seconds=0"),
        ({"segment_seconds": 1e300}, "--segment_seconds=1e+300"),
        ({"path_from": "file"}, "--path_from=file: for tables only"),
        ({"segment_seconds": 0.001}, "less than one frame"),
        ({"seed": -1}, "--seed=-1"),
        ({"shard_size": "many"}, "--shard_size=many"),
        ({"workers": 0}, "--workers=0"),
        ({"fmax": 9000.0}, "fmax 9000"),
        ({"fmin": 5000.0}, "fmin 5000"),
        ({"n_mels": 0}, "n_mels 0"),
        ({"highpass": RATE / 2}, "--highpass=4000"),
        ({"highpass": 0.0}, "--highpass=0"),
        ({"trim_silence": -40.0}, "--trim_silence=-40"),
        ({"loudness": 23.0}, "--loudness=23"),
        ({"loudness": float("nan")}, "--loudness=nan"),
        ({"peak": 1.0}, "--peak=1"),
        ({"peak": -1.0, "loudness": -23.0}, "exclude each other"),
        ({"pad": "mirror"}, "--pad=mirror"),
        ({"tail": "keep"}, "--tail=keep"),
        ({"min_seconds": -1.0}, "--min_seconds=-1"),
        ({"file_timeout": -1.0}, "--file_timeout=-1"),
    ],
)
def test_bad_words_write_nothing(small, tmp_path, words, message):
    with pytest.raises(UserError) as error:
        build_tones(small, tmp_path / "set", **{"folds": None} | words)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()


def test_bad_places(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for audio, out, message in (
        (tmp_path / "nowhere", tmp_path / "set", "no such folder"),
        (small, small, "lies inside the audio folder"),
        (small, small / "low" / "set", "lies inside the audio folder"),
        (small, tmp_path / "file", "^\\S+: is a file, not a folder"),
        (small, tmp_path / "file" / "set", "is a file, not a folder"),
        (small, tmp_path, "not empty and no shard set"),
    ):
        with pytest.raises(UserError, match=message):
            build_tones(audio, out, folds=2)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no permission"):
        build_tones(small, tmp_path / "set", folds=2)


@pytest.mark.parametrize(
    ("text", "size"), [("256MB", 256 * 10**6), ("1GiB", 2**30), ("1.5kb", 1500), ("77", 77)]
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size
