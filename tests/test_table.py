"""Recordings that a table names: what is read, what is refused, what is only listed."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import RATE, build_tones, hashes, lines, read_plainly, write_tone, write_tones

from shards.errors import UserError
from shards.index import open_set
from shards.manifest import scan
from shards.table import locate, own_columns, read_table
from shards.verify import verify

ROWS = [
    ("high/0.wav", "bird", "s1", "1", "train"),
    ("high/1.wav", "bird", "s2", "2", "dev"),
    ("low/0.wav", "frog, green", "s1", "1", "train"),
    ("low/1.wav", "frog, green", "s2", "2", "dev"),
]
NAMES = ("path", "label", "group", "fold", "split")
FROM = {f"{name}_from": name for name in NAMES[1:]}
NO_WORDS = dict.fromkeys(("label_from", "group_from", "fold_from", "split_from", "folds", "split"))


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    for label, hertz in (("high", 2000.0), ("low", 440.0)):
        for n in range(2):
            write_tone(tmp_path / "audio" / label / f"{n}.wav", hertz, seed=n)
    return tmp_path / "audio"


def quoted(words: Any) -> str:
    return ",".join(f'"{word}"' for word in words)


def write_csv(file: Path, rows: Any, names: Any = NAMES) -> Path:
    file.write_text("".join(quoted(row) + "\n" for row in [names, *rows]))
    return file


def test_csv_tsv_and_json_lines_say_the_same(audio: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ROWS, [name.title() for name in NAMES])
    text = "\n".join("\t".join(row) for row in [NAMES, *ROWS])
    (tmp_path / "a.TSV").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    objects = [
        json.dumps(dict(zip(NAMES, row, strict=True)) | {"fold": int(row[3])}) for row in ROWS
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(objects))
    found = [scan(audio, read_table(tmp_path / f"a.{x}"), **FROM) for x in ("csv", "TSV", "jsonl")]
    assert found[0] == found[1] == found[2] and not found[0].rejected
    named = {(r.path, r.label, r.group, r.fold, r.split) for r in found[0].recordings}
    assert named == {(*row[:4], {"dev": "val"}.get(row[4], row[4])) for row in ROWS}


def test_a_protocol_needs_no_suffixes(audio: Path, tmp_path: Path) -> None:
    text = "LA_7 high/0 - - spoof\nLA_7 high/1 alaw A01 spoof\nLA_8 low/0 - - bonafide\n"
    (tmp_path / "train.trn.txt").write_text(text)
    table = read_table(tmp_path / "train.trn.txt")
    flags = {"label_from": "label", "group_from": "speaker", "attack_from": "attack"}
    assert own_columns(table, NO_WORDS | {"attack_from": None})["attack_from"] == "attack"
    found = scan(audio, table, **flags).recordings
    assert {(r.path, r.label, r.group, r.attack) for r in found} == {
        ("high/0.wav", "spoof", "LA_7", None),
        ("high/1.wav", "spoof", "LA_7", "A01"),
        ("low/0.wav", "bonafide", "LA_8", None),
    }
    (tmp_path / "other.txt").write_text("spoof high/0\nbonafide low/0\n")
    table = read_table(tmp_path / "other.txt", "wav", "key wav")
    assert {r.label for r in scan(audio, table, label_from="key").recordings} == {
        "spoof",
        "bonafide",
    }


def test_the_keys_of_2021_are_told_by_their_words(audio: Path, tmp_path: Path) -> None:
    genuine, fake, more = "S1 low/0 alaw ita_tx", "S2 high/0 low_m4a vcc", " vocoder - - - -"
    for rest, attack in (("", "bonafide"), (more, "-")):
        rows = (f"{genuine} {attack} bonafide trim eval", f"{fake} A07 spoof notrim progress")
        (tmp_path / "key.txt").write_text("".join(f"{row}{rest}\n" for row in rows))
        flags = {"label_from": "label", "group_from": "speaker", "attack_from": "attack"}
        found = scan(audio, read_table(tmp_path / "key.txt"), **flags).recordings
        assert {(r.path, r.label, r.group, r.attack) for r in found} == {
            ("low/0.wav", "bonafide", "S1", None), ("high/0.wav", "spoof", "S2", "A07"),
        }  # fmt: skip


def test_a_pattern_may_stand_beside_columns(audio: Path, tmp_path: Path) -> None:
    table = read_table(write_csv(tmp_path / "a.csv", ROWS))
    found = scan(audio, table, label_from="^([a-z]+)/", group_from="split").recordings
    assert {(r.path[:-6], r.label) for r in found} == {("high", "high"), ("low", "low")}
    assert {r.group for r in found} == {"train", "dev"} and {r.fold for r in found} == {None}


def test_a_flat_folder_is_labelled_by_a_pattern(tmp_path: Path) -> None:
    for n, name in enumerate(("0_george_1.wav", "7_lucas_1.wav", "7_george_2.wav")):
        write_tone(tmp_path / "digits" / name, 440.0, seconds=0.1, seed=n)
    found = scan(tmp_path / "digits", label_from=r"^(\d)", group_from="_([a-z]+)_").recordings
    assert {(r.label, r.group) for r in found} == {("0", "george"), ("7", "lucas"), ("7", "george")}


def test_columns_named_so_are_taken_unless_asked_otherwise() -> None:
    table = {"path": ["a"], "label": ["x"], "fold": ["1"], "split": ["train"], "speaker": ["s"]}
    own = {"label_from": "label", "fold_from": "fold", "split_from": "split"}
    assert own_columns(table, NO_WORDS) == own
    asked = NO_WORDS | {"folds": 3, "label_from": "speaker"}
    assert own_columns(table, asked) == {"split_from": "split"}


def test_built_from_a_table(tmp_path: Path) -> None:
    audio = write_tones(tmp_path / "audio", 4, {"high": 2000.0, "low": 440.0})
    rows = [(p.relative_to(audio), p.parent.name, p.name[-5]) for p in audio.glob("*/*.wav")]
    file = write_csv(tmp_path / "list.csv", rows, ("path", "label", "fold"))
    words = {"folds": None, "group_from": None, "audio_root": str(audio)}
    build_tones(file, tmp_path / "set", **words)
    about = open_set(tmp_path / "set").info
    assert about["folds"] == list("0123") and about["split"]["fold_from"] == "fold"
    assert {(x["path"], x["label"], x["fold"]) for x in lines(tmp_path / "set")} == {
        (str(path), label, fold) for path, label, fold in rows
    }
    # The same recordings as class folders: the same samples, whatever the order of the rows.
    write_csv(tmp_path / "list.csv", rows[::-1], ("path", "label", "fold"))
    assert "complete already" in build_tones(file, tmp_path / "set", **words)
    build_tones(audio, tmp_path / "plain", folds=None, group_from=None, fold_from=r"(\d)\.wav")
    tar = "samples-000000.tar"
    assert hashes(tmp_path / "set")[tar] == hashes(tmp_path / "plain")[tar]
    assert "label_sets" not in about and verify(str(tmp_path / "set")) == []


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_pieces_of_a_long_file(tmp_path: Path, suffix: str) -> None:
    tones = [500.0, 1000.0, 1500.0, 2500.0]
    time = np.arange(RATE) / RATE
    wave = np.concatenate([0.3 * np.sin(2 * np.pi * hertz * time) for hertz in tones])
    rows = []
    for name in ("x", "y"):
        (tmp_path / "audio").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "audio" / f"{name}.{suffix}", wave, RATE)
        rows += [(name, f"{hertz:g}", n, n + 1) for n, hertz in enumerate(tones)]
    rows[3] = ("x", "2500", "3", "")  # to the end
    rows.append(("y", "500", "9", "10"))
    write_csv(tmp_path / "audio" / "list.csv", rows, ("path", "label", "start", "end"))
    said = build_tones(tmp_path / "audio" / "list.csv", tmp_path / "set", folds=2, group_from=None)
    assert "8 recordings (0.00 h) of 4 classes in 2 groups" in " ".join(said.split())
    assert (tmp_path / "set" / "rejected.csv").read_text().splitlines()[1:] == [
        f'y.{suffix},"begins behind the end of its file (from 9 s, it has 4 s)"'
    ]
    samples = read_plainly(tmp_path / "set")
    assert len(samples) == 8
    for sample in samples:
        about = sample["json"]
        assert tones[int(about["start"])] == float(about["class"]) and about["start"] % 1 == 0
        loudest = sample["npy"][:, 4:-4].astype(float).mean(axis=1).argmax()
        assert np.isclose(mel_centre(loudest), float(about["class"]), rtol=0.1)
    folds = {(line["path"], line["fold"]) for line in lines(tmp_path / "set")}
    assert len(folds) == 2  # all pieces of a file are in one fold
    assert {(x["start"], x["end"], x["segments"]) for x in lines(tmp_path / "set")} == {
        (float(n), float(n + 1), 1) for n in range(4)
    }
    assert verify(str(tmp_path / "set")) == []


def mel_centre(band: int) -> float:
    import librosa

    return float(librosa.mel_frequencies(34, fmin=0, fmax=RATE / 2)[band + 1])


def test_missing_files_are_listed_and_strict_stops(audio: Path, tmp_path: Path) -> None:
    os.link(audio / "low" / "0.wav", audio / "low" / "2.wav")
    os.link(audio / "low" / "0.wav", audio / "low" / "2.flac")
    rows = [
        *ROWS,
        *((f"{p}", "frog, green", "s1", "1", "train") for p in ("low/2", "gone/1", "low/9")),
    ]
    table = read_table(write_csv(tmp_path / "a.csv", rows))
    found = scan(audio, table, **FROM)
    assert len(found.recordings) == 4
    assert {reject.path: reject.reason.partition(";")[0] for reject in found.rejected} == {
        "low/2": "fits 2 files, such as 2.flac",
        "gone/1": "missing",
        "low/9": "missing",
    }
    with pytest.raises(UserError, match=r"--strict: 3 of 7 rows .* 'low/2', 'gone/1', 'low/9'"):
        scan(audio, table, strict=True, **FROM)
    assert scan(audio, read_table(write_csv(tmp_path / "b.csv", ROWS)), strict=True, **FROM)


def test_paths_are_found_however_they_are_spelt(audio: Path, tmp_path: Path) -> None:
    os.rename(audio / "low" / "0.wav", audio / "low" / unicodedata.normalize("NFD", "é.wav"))
    spelt = ["./high/../high/0.wav", str(audio / "high" / "1.wav"), "low\\1.wav", "low/é"]
    rows = [(path, *row[1:]) for path, row in zip(spelt, ROWS, strict=True)]
    found = scan(audio, read_table(write_csv(tmp_path / "a.csv", rows)), **FROM).recordings
    on_disk = {f"{p.parent.name}/{p.name}" for p in audio.glob("*/*.wav")}
    assert {r.path for r in found} == on_disk


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "no rows in it"),
        ("a.csv", "path,label\n", "no rows in it"),
        ("a.csv", "file name,label\nx,y\n", "no column 'path', there are file name, label;"),
        ("a.csv", "path,label\nx,y,z\n", "row 1 has 3 columns, expected 2"),
        ("a.csv", "path,path\nx,y\n", "two columns are named 'path'"),
        ("a.csv", "path,label\nx,y\n,z\n", "row 2 names no path"),
        ("a.csv", 'path,label\nx,y\nx,"y"z\n', "line 3: ',' expected after"),
        ("a.jsonl", '{"path": "x"}\n{"path": "x"', "row 2 is no JSON object"),
        ("a.ogg", "OggS\xff", "no text in UTF-8"),
        ("a.jsonl", '["x"]', "row 1 is no JSON object"),
        ("a.txt", "LA_1 x - - spoof\nLA_1 x\n", "row 2 has 2 columns, expected 5"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as error:
        read_table(tmp_path / name)
    assert message in str(error.value) and str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("low/0.wav,a,,\nlow/0,b,,\n", "'low/0.wav' is in 2 rows of the table; name a file once"),
        ("low/0.wav,a,,\nlow/0.wav,b,1,2\n", "'low/0.wav' is in 2 rows"),
        ("low/0.wav,a,,\n../audio/low/0.wav,b,,\n", "'low/0.wav' is in 2 rows"),
        ("low/0.wav,a,0,1\nlow/0.wav,b,0,1\n", "'low/0.wav' is in 2 rows"),
        ("low/0.wav,a,2,1\nlow/1.wav,b,,\n", "'low/0.wav': start '2' and end '1'"),
        ("low/0.wav,a,x,\nlow/1.wav,b,,\n", "'low/0.wav': start 'x'"),
        ("low/0.wav,a,,inf\nlow/1.wav,b,,\n", "'low/0.wav': start '' and end 'inf'"),
        ("low/0.wav,a,1e305,\nlow/1.wav,b,,\n", "'low/0.wav': start '1e305'"),
        ("low/0.wav,a,-1,\nlow/1.wav,b,,\n", "'low/0.wav': start '-1'"),
        ("low/0.wav,a,,\nlow/1.wav,,,\n", "--label_from=label: 'low/1.wav' has nothing in that"),
        ("low/0.wav,a,,\nlow/1.wav,;,,\n", "--label_from=label: 'low/1.wav' has nothing in that"),
        ("low/0.wav,a,,\nlow/1.wav,a,,\n", "one class only, 'a'"),
    ],
)
def test_bad_rows(audio: Path, tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(f"path,label,start,end\n{rows}")
    with pytest.raises(UserError) as error:
        scan(audio, read_table(tmp_path / "a.csv"), label_from="label")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_pieces_that_share_audio_share_their_group(audio: Path, tmp_path: Path) -> None:
    rows = ["a,0,0.9,s", "b,0.1,0.2,s", "a,0.9,1,t", "a,0.5,0.6,t"]  # the last is in the first
    names = {"label_from": "label", "group_from": "group"}
    text = "path,label,start,end,group\n" + "".join(f"low/0.wav,{row}\n" for row in rows[:3])
    (tmp_path / "a.csv").write_text(text)
    assert len(scan(audio, read_table(tmp_path / "a.csv"), **names).recordings) == 3
    (tmp_path / "a.csv").write_text(f"{text}low/0.wav,{rows[3]}\n")
    with pytest.raises(UserError, match=r"from 0 s and 0\.5 s overlap, but are in groups 's'"):
        scan(audio, read_table(tmp_path / "a.csv"), **names)


def test_bad_places(audio: Path, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "a.csv", ROWS)
    assert locate(str(table), None) == (tmp_path, table)
    assert locate(str(table), str(audio)) == (audio, table)
    assert locate(str(audio), None) == (audio, None)
    for words, message in (
        ((str(tmp_path / "b.csv"), None), "no such folder or table"),
        ((str(audio), str(audio)), "for tables only"),
        ((str(table), str(tmp_path / "gone")), "no such folder"),
    ):
        with pytest.raises(UserError, match=message):
            locate(*words)
    with pytest.raises(UserError, match="or name a column of the table: Who, path"):
        table = {"Who": ["s", "t"], "path": ["low/0.wav", "high/0.wav"]}
        scan(audio, table, label_from="^([a-z]+)/", group_from="who")
    with pytest.raises(UserError, match="no column 'label' in the table"):
        scan(audio, {"path": ["low/0.wav"]})
