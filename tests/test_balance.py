"""What a set holds, told and drawn: counted again from the recordings, seen in the pixels."""

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import build_tones, lines, write_tone

from shards import progress as progress_module
from shards.__main__ import main
from shards.balance import MEASURES, Balance, table
from shards.chart import balance_png, drawn
from shards.errors import UserError
from shards.folder import OUTSIDE
from shards.index import open_set
from shards.progress import Progress, duration
from shards.summary import kind, summary


def numbers(out: Path, measure: str) -> dict[str, list[str]]:
    rows = [line.replace("fold ", "fold-").split() for line in table(open_set(out), measure)]
    return {name: cells for name, *cells in rows}


@pytest.mark.parametrize("measure", MEASURES)
def test_tables_count_what_is_there(tone_set: Path, measure: str) -> None:
    found = lines(tone_set)
    rows = numbers(tone_set, measure)
    columns = [{"fold": str(n)} for n in range(1, 5)]
    columns += [{"split": part} for part in ("train", "val", "test")]
    assert rows.pop(measure) == ["all", *(f"fold-{n}" for n in range(1, 5)), "train", "val", "test"]
    for name, cells in rows.items():
        for cell, column in zip(cells, [{}, *columns], strict=True):
            named = {} if name == "all" else {"label": name}
            some = [x for x in found if all(x[k] == v for k, v in (column | named).items())]
            expected = {
                "recordings": len(some),
                "groups": len({x["group"] for x in some}),
                "segments": sum(x["segments"] for x in some),
                "seconds": sum(x["seconds"] for x in some),
            }
            assert int(cell) == expected[measure]


def test_a_group_in_two_classes_counts_once() -> None:
    line = {"group": "g", "split": "train", "fold": None, "segments": 2, "seconds": 1.5}
    balance = Balance(["a", "b"], [], [line | {"label": "a"}, line | {"label": "b"}])
    assert balance.total().told() == {"recordings": 2, "groups": 1, "segments": 4, "seconds": 3.0}
    assert [x["groups"] for x in balance.records()] == [1, 1]


def test_records_are_those_of_balance_json(tone_set: Path) -> None:
    shard_set = open_set(tone_set)
    balance = Balance(shard_set.info["classes"], shard_set.folds, shard_set.recordings())
    assert balance.records() == json.loads((tone_set / "balance.json").read_text())


@pytest.mark.parametrize("classes", [2, 11, 50, 70])
def test_the_picture_has_a_colour_a_class(recwarn: pytest.WarningsRecorder, classes: int) -> None:
    from matplotlib.image import imread

    line = {"split": "train", "segments": 1, "seconds": 30.0, "group": "g"}
    folds = [str(n) for n in range(5)]
    found = [line | {"label": f"狗${n}", "fold": f} for n in range(classes) for f in folds]
    balance = Balance([f"狗${n}" for n in range(classes)], folds, found)
    png = balance_png(balance)
    drawn.cache_clear()
    assert png == balance_png(balance) and not recwarn.list  # of letters that the font lacks
    pixels = (imread(io.BytesIO(png))[..., :3] * 255).astype(int).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    shown = (counts >= 30) & (colours.max(axis=1) - colours.min(axis=1) > 15)
    assert shown.sum() >= min(classes, 48)  # two of them are greys


def test_summary_is_fit_for_a_paper(tmp_path: Path) -> None:
    for n in range(8):
        write_tone(tmp_path / "audio" / "ab"[n % 2] / f"{n}.wav", 440.0, seconds=1.5, seed=n)
    for n in range(3):
        (tmp_path / "audio" / "a" / f"broken{n}.wav").write_bytes(b"RIFF and nothing")
    out = tmp_path / "set"
    said = build_tones(tmp_path / "audio", out, folds=2, overlap=0.5, group_from=None)
    words = " ".join(said.split())
    for piece in (
        "8 recordings (0.00 h) of 2 classes in 8 groups. 3 were rejected: not readable as audio",
        "Mono at 8000 Hz, cut into 16 segments of 1 s with an overlap of 50 %, partial ones padded "
        "with silence.",
        "32 bands from 0 to 4000 Hz, Hann window of 512 samples, hop of 128.",
        "2 folds by StratifiedKFold (seed 0)",
    ):
        assert piece in words
    assert summary(open_set(out)) in said


def test_a_paper_is_told_all_that_was_done_to_a_wave(small: Path, tmp_path: Path) -> None:
    done = {"min_seconds": 0.5, "highpass": 50.0, "trim_silence": 60.0, "peak": 0.0}
    words = {"pad": "reflect", "tail": "drop", "folds": None, "split": "0.5,0,0.5"}
    said = build_tones(small, tmp_path / "set", group_from=None, **done, **words)
    assert (
        "Mono at 8000 Hz, at least 0.5 s long, high-passed at 50 Hz, silence 60 dB below the "
        "loudest part cut off both ends, brought to a peak of 0 dBFS, cut into 12 segments of 1 s "
        "with no overlap, recordings shorter than that filled up by reflection, other rests "
        "dropped."
    ) in " ".join(said.split())
    assert "split (0.5, 0, 0.5) by stratified allotment of groups (seed 0)" in said.replace(
        "\n", " "
    )


def test_reasons_are_told_without_what_is_one_file_s() -> None:
    for reason in ("silent", "silent (from 3 s, 2 s long)"):
        assert kind(reason) == "silent"
    assert kind("not finite: 3 NaN or Inf samples") == "not finite"
    assert kind("missing; the table names it") == "missing"
    assert kind(f"{OUTSIDE} (from 9 s, it has 4 s)") == OUTSIDE
    assert kind("a copy of a/b c.wav") == "a copy"


def test_info_counts_what_is_asked(tone_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tone_set), "--count=recordings"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].split()[:2] == ["all", "36"]
    with pytest.raises(UserError, match="--count=files: expected one of recordings, groups"):
        table(open_set(tone_set), "files")


def test_progress_off_a_terminal_is_a_line_now_and_then(monkeypatch, caplog):
    clock = iter([0.0, 10.0, 29.0, 40.0, 50.0, 69.0, 80.0])
    monkeypatch.setattr(progress_module, "monotonic", lambda: next(clock))
    caplog.set_level(logging.INFO)
    with Progress("build", 1006, done=1000) as progress:
        for _ in range(6):
            progress.update(120.0)
    assert [record.getMessage() for record in caplog.records] == [
        "build: 1003 of 1006 recordings, 0.1 a second, 9x real time, 40 s left",
        "build: 1006 of 1006 recordings, 0.1 a second, 9x real time, 0 s left",
    ]
    assert [duration(s) for s in (89, 720, 11100)] == ["89 s", "12 min", "3 h 05 min"]
