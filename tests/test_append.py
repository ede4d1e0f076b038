"""`--append`: what is there stays, byte for byte; what is new goes where it fits."""

import json
import os
import shutil
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import (
    BESIDE_TARS,
    RATE,
    TONES,
    build_tones,
    hashes,
    lines,
    read_plainly,
    write_tone,
)
from processes import on_ranks

from shards import build as build_module
from shards.errors import UserError
from shards.index import open_set
from shards.merge import merge
from shards.verify import verify

WORDS: dict[str, Any] = {"split": "0.6,0.2,0.2"}  # as tone_set is built


def grow(audio: Path, first: int = 6, groups: int = 8) -> None:
    """To each class one recording of old group g0, and `groups` new groups of two."""
    for place, (label, hertz) in enumerate(TONES.items()):
        names = [f"g0-{first}"]
        names += [f"g{g}-{n}" for g in range(first, first + groups) for n in (2 * g, 2 * g + 1)]
        for n, name in enumerate(names):
            file = audio / label / f"{label}-{name}.wav"
            write_tone(file, hertz, seconds=1.0 + n % 2, seed=7000 + 100 * place + n)


@pytest.fixture
def grown(tones: Path, tone_set: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The audio of `tone_set` with 51 recordings more, and a copy of the set without them."""
    audio = Path(shutil.copytree(tones, tmp_path / "audio"))
    grow(audio)
    return audio, Path(shutil.copytree(tone_set, tmp_path / "set"))


def append(audio: Path, out: Path, **words: Any) -> str:
    return build_tones(audio, out, **{**WORDS, "append": True, **words})


def test_old_bytes_and_folds_stay(grown: tuple[Path, Path], tone_set: Path) -> None:
    audio, out = grown
    append(audio, out)
    before, after, old = hashes(tone_set), hashes(out), lines(tone_set)
    assert {n: after[n] for n in before if n.endswith(".tar")} == {
        n: before[n] for n in before if n.endswith(".tar")
    }
    assert lines(out)[: len(old)] == old and len(lines(out)) == len(old) + 51
    new_tars = after.keys() - before.keys()
    assert new_tars and after.keys() - new_tars == before.keys() == BESIDE_TARS | {
        n for n in before if n.endswith(".tar")
    }
    assert verify(str(out)) == []
    info, index = open_set(out).info, open_set(out).index
    assert info["samples"] == len(index) == sum(x["segments"] for x in lines(out))
    old_index = open_set(tone_set).index
    assert (index[: len(old_index)] == old_index).all()
    assert info["appended"] == [len(open_set(tone_set).info["shards"])]
    assert info["recordings"] == 87 and info["groups"] == 18 + 24
    keys = [x["__key__"] for x in read_plainly(out)]
    assert len(set(keys)) == len(keys) == info["samples"]
    stats = np.zeros_like(open_set(out).stats)  # what plain webdataset reads adds up to it
    for x in read_plainly(out):
        about, values = x["json"], x["npy"].astype(float)
        cell = stats[["train", "val", "test"].index(about["split"]), int(about["fold"]) - 1]
        cell[about["label"]] += [
            np.full(len(values), values.shape[1]), values.sum(1), (values**2).sum(1)
        ]  # fmt: skip
    np.testing.assert_allclose(open_set(out).stats, stats, rtol=1e-9)


def test_new_recordings_are_grouped_and_stratified(grown: tuple[Path, Path]) -> None:
    audio, out = grown
    append(audio, out)
    for kind, shares in (
        ("fold", dict.fromkeys("1234", 0.25)),
        ("split", {"train": 0.6, "val": 0.2, "test": 0.2}),
    ):
        home: dict[str, str] = {}
        for x in lines(out):
            assert home.setdefault(x["group"], x[kind]) == x[kind]
        for label in TONES:  # 29 recordings of each class, in groups of 2 and one of 3
            count = Counter(x[kind] for x in lines(out) if x["label"] == label)
            assert all(abs(count[name] - share * 29) <= 2.5 for name, share in shares.items())


def test_the_same_bytes_whatever_did_it(grown: tuple[Path, Path], tmp_path: Path) -> None:
    audio, out = grown
    other, third = (Path(shutil.copytree(out, tmp_path / name)) for name in ("other", "third"))
    append(audio, out, workers=2)
    for n in range(2):
        append(audio, other, part=f"{n}/2")
    assert open_set(other).info["recordings"] == 36
    assert verify(str(other)) == []  # the old set, whole until the merge
    merge(str(other))
    assert hashes(other) == hashes(out)
    before = hashes(out)
    assert "complete already" in append(audio, out)
    assert hashes(out) == before
    with pytest.raises(UserError, match="appended to it; start it with --append"):
        build_tones(audio, out, **WORDS)
    with pytest.raises(UserError, match="--append adds new ones"):
        build_tones(audio, third, **WORDS)


def test_twice(grown: tuple[Path, Path]) -> None:
    audio, out = grown
    append(audio, out)
    first = hashes(out)
    grow(audio, 20, 2)
    append(audio, out)
    second = hashes(out)
    assert {n: second[n] for n in first if n.endswith(".tar")} == {
        n: first[n] for n in first if n.endswith(".tar")
    }
    assert verify(str(out)) == [] and len(open_set(out).info["appended"]) == 2
    assert open_set(out).info["recordings"] == 36 + 51 + 15


def test_rejected_files_are_listed_once_and_not_tried_again(grown, tmp_path):
    audio, out = grown
    soundfile.write(audio / "low" / "low-g7-50.wav", np.zeros(RATE), RATE)
    (audio / "low" / "low-g7-51.wav").write_bytes(b"no audio")
    append(audio, out)
    table = (out / "rejected.csv").read_text().splitlines()
    assert len(table) == 3 and "low/low-g7-50.wav,silent" in table
    write_tone(audio / "low" / "low-g7-51.wav", 440.0)
    assert "complete already" in append(audio, out)
    write_tone(audio / "low" / "low-g7-52.wav", 440.0)
    append(audio, out)
    assert (out / "rejected.csv").read_text().splitlines() == table
    assert open_set(out).info["recordings"] == 36 + 51 + 1 and verify(str(out)) == []


def test_a_piece_that_is_rejected_costs_no_other_piece_of_its_file(tmp_path: Path) -> None:
    table, out, words = tmp_path / "list.csv", tmp_path / "set", {"group_from": None, "folds": 2}
    rows = ["path,label,start,end", "0.wav,low,9,10"]
    for n, (label, hertz) in enumerate([("low", 440.0), ("high", 2000.0)] * 2):
        write_tone(tmp_path / f"{n}.wav", hertz, seconds=4.0)
        rows.append(f"{n}.wav,{label},0,1")
    table.write_text("\n".join(rows))
    build_tones(table, out, **words)
    table.write_text("\n".join([*rows, "0.wav,low,0,3", "0.wav,low,20,21", "1.wav,high,0,2"]))
    build_tones(table, out, append=True, **words)
    pieces = {(x["path"], x["start"], x["end"]) for x in lines(out)[4:]}
    assert pieces == {("0.wav", 0.0, 3.0), ("1.wav", 0.0, 2.0)}
    told = (out / "rejected.csv").read_text().splitlines()[1:]
    assert sorted(x.partition("(from ")[2][:5] for x in told) == ["20 s,", "9 s, "]


def test_what_is_refused(grown: tuple[Path, Path], tones: Path, tmp_path: Path) -> None:
    audio, out = grown
    before = hashes(out)
    write_tone(audio / "bell" / "bell-g0-0.wav", 900.0)
    with pytest.raises(UserError, match="'bell': a new class would renumber"):
        append(audio, out)
    shutil.rmtree(audio / "bell")
    with pytest.raises(UserError, match="n_mels: 32 there, 16 asked"):
        append(audio, out, n_mels=16)
    with pytest.raises(UserError, match="no finished shard set to append to"):
        append(audio, tmp_path / "new")
    write_tone(audio / "low" / "low-g0-0.wav", 440.0, seconds=3.0)
    with pytest.raises(UserError, match=r"no longer what they were: .low/low-g0-0\.wav.; put them"):
        append(audio, out)
    for n in range(5):
        (audio / "low" / f"low-g{n // 2}-{n}.wav").unlink()
    with pytest.raises(UserError, match=r"gone or unreadable: 'low/low-g\d-\d.*' and 2 more; put"):
        append(audio, out)
    assert hashes(out) == before and not (tmp_path / "new").exists()


def test_given_folds(tmp_path: Path) -> None:
    audio, out, words = tmp_path / "audio", tmp_path / "set", {"fold_from": r"f(\d)", "folds": None}
    words |= {"group_from": r"g\d+"}

    def write(name: str) -> None:
        for label in ("high", "low"):
            write_tone(audio / label / f"{label}-{name}.wav", TONES[label])

    for name in ("f1-g0-0", "f2-g1-0"):
        write(name)
    build_tones(audio, out, **words)
    write("f2-g0-1")
    with pytest.raises(UserError, match=r"group .g0. is in fold .1. and, with .*, in .2."):
        build_tones(audio, out, append=True, **words)
    for label in ("high", "low"):
        (audio / label / f"{label}-f2-g0-1.wav").unlink()
    write("f3-g2-0")
    with pytest.raises(UserError, match="is in fold '3', the set has 1, 2"):
        build_tones(audio, out, append=True, **words)
    for label in ("high", "low"):
        (audio / label / f"{label}-f3-g2-0.wav").unlink()
    write("f2-g2-0")
    build_tones(audio, out, append=True, **words)
    assert (
        all(x["fold"] == x["path"].split("-f")[1][0] for x in lines(out)) and len(lines(out)) == 6
    )


def killed(at: int, audio: Path, out: Path) -> str:
    """An append that dies of SIGKILL as it is about to rename a file for the `at`-th time."""
    calls, replace = iter(range(1, at)), os.replace

    def replace_or_die(*words: Any, **more: Any) -> None:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*words, **more)

    os.replace = replace_or_die  # type: ignore[assignment]
    build_module.warm_up = lambda: None  # starts processes, which are its parent's here
    return append(audio, out, file_timeout=0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_any_rename_the_old_set_or_the_new_one_is_whole(grown, tone_set, tmp_path):
    audio, out = grown
    append(audio, out)
    new, n_new = hashes(out), open_set(out).info["samples"]
    seen = []
    for at in range(1, 99, 4):
        copy = Path(shutil.copytree(tone_set, tmp_path / f"killed-{at}"))
        [said] = on_ranks(1, partial(killed, at, audio, copy))
        if said is not None:
            assert "recordings" in said
            break
        now = open_set(copy)
        seen.append(len(now.index))
        assert verify(str(copy)) == [] and len(now.index) == now.info["samples"]
        assert len(list(now.recordings())) == now.info["recordings"]
        append(audio, copy)
        assert hashes(copy) == new
        shutil.rmtree(copy)
    assert set(seen) == {54, n_new} and seen == sorted(seen)


def test_an_unfinished_append_gives_way_to_more_files(grown, tmp_path, monkeypatch):
    audio, out = grown
    with monkeypatch.context() as patch:
        patch.setattr("shards.build.finish", lambda plan: os.abort if plan else None)
        append(audio, out)  # as if killed before its end
    assert (out / ".build" / "plan.json").exists() and open_set(out).info["recordings"] == 36
    plan = json.loads((out / ".build" / "plan.json").read_text())
    assert plan["base"] == open_set(out).info["manifest"]
    grow(audio, 30, 1)
    append(audio, out)
    assert open_set(out).info["recordings"] == 36 + 51 + 9 and verify(str(out)) == []
    assert not (out / ".build").exists()
