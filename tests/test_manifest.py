"""What a folder of audio is understood to be."""

import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from conftest import write_tone

from shards.errors import UserError
from shards.labels import natural
from shards.manifest import scan
from shards.recording import digest
from shards.summary import describe


def make(folder: Path, *names: str) -> Path:
    """One short tone, and links to it under each name."""
    tone = write_tone(folder.parent / "tone.wav", 440.0, seconds=0.1)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(tone, folder / name)
    return folder


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    return make(tmp_path / "audio", *(f"{c}/p{n}_take.wav" for c in "ab" for n in range(30)))


def test_labels_are_first_folders_and_paths_stay_as_found(tmp_path: Path) -> None:
    names = ["001 - Dog bark/deep/er/x.wav", "002 - Rain/Y.WAV", "002 - Rain/-v 'q\" ü.wav"]
    found = scan(make(tmp_path / "audio", *names)).recordings
    assert {(r.path, r.label) for r in found} == {(n, n.split("/")[0]) for n in names}
    assert all((r.frames, r.sample_rate, r.channels) == (800, 8000, 1) for r in found)
    assert all(r.group == r.path for r in found)


def test_hidden_files_and_other_files_are_passed_by(audio: Path) -> None:
    make(audio, "a/._p0_take.wav", ".cache/x.wav", "a/.hidden/x.wav", "loose.wav", "a/notes.txt")
    found = scan(audio)
    assert len(found.recordings) == 60 and not found.rejected
    assert sorted(found.passed_by) == ["a/notes.txt", "loose.wav"]
    assert ".txt (1), .wav (1)" in describe(found)


def test_listing_order_makes_no_difference(audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scan(audio, seed=3)
    scandir = os.scandir

    class Reversed:
        def __init__(self, folder: Any) -> None:
            with scandir(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *exception: Any) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert scan(audio, seed=3) == before


def test_order_is_a_function_of_seed_and_path(audio: Path) -> None:
    first = [r.path for r in scan(audio, seed=0).recordings]
    assert first != sorted(first)
    assert first != [r.path for r in scan(audio, seed=1).recordings]
    make(audio, "b/new.wav")
    later = [r.path for r in scan(audio, seed=0).recordings]
    later.remove("b/new.wav")
    assert later == first
    thirds = [first[:20], first[20:40], first[40:]]
    assert all(5 <= sum(p.startswith("a/") for p in third) <= 15 for third in thirds)


def test_both_spellings_of_an_accent_get_one_place(tmp_path: Path) -> None:
    orders = []
    for form in ("NFC", "NFD"):
        names = [unicodedata.normalize(form, f"{c}/é{n}ü.wav") for c in "ab" for n in range(8)]
        found = scan(make(tmp_path / form / "audio", *names)).recordings
        assert {r.path for r in found} == set(names)
        orders.append([unicodedata.normalize("NFC", r.path) for r in found])
    assert orders[0] == orders[1]


def test_both_spellings_of_a_label_and_of_a_group_are_one(tmp_path: Path) -> None:
    names = [
        unicodedata.normalize(f, f"{c}é/José{n}.wav")
        for f in ("NFC", "NFD")
        for c in "ab"
        for n in "12"
    ]
    found = scan(make(tmp_path / "audio", *names), group_from="^[^0-9]+").recordings
    assert {r.path for r in found} == set(names)
    assert {r.label for r in found} == {"aé", "bé"} and {r.group for r in found} == {"José"}


def test_patterns_search_the_name_or_the_path(audio: Path) -> None:
    by_name = scan(audio, group_from=r"p(\d+)_", fold_from=r"\d(?=_)").recordings
    assert all(r.group == r.path[3:].split("_")[0] for r in by_name)
    assert all(r.fold == r.group[-1] for r in by_name)
    assert len({r.group for r in by_name}) == 30  # one speaker in both classes
    by_path = scan(audio, group_from="^./p").recordings
    assert {r.group for r in by_path} == {"a/p", "b/p"}


def test_split_names_are_understood(tmp_path: Path) -> None:
    names = [f"{c}/{part}-{c}.wav" for c in "ab" for part in ("Train", "validation", "eval")]
    found = scan(make(tmp_path / "audio", *names), split_from="^[A-Za-z]+").recordings
    assert {r.path[2:4]: r.split for r in found} == {"Tr": "train", "va": "val", "ev": "test"}


def test_a_broken_file_and_a_dangling_link_are_rejected(audio: Path) -> None:
    (audio / "a" / "broken.wav").write_bytes(b"RIFF and then nothing")
    (audio / "a" / "gone.wav").symlink_to(audio / "nowhere.wav")
    found = scan(audio)
    assert {reject.path for reject in found.rejected} == {"a/broken.wav", "a/gone.wav"}
    assert all(str(audio) not in reject.reason for reject in found.rejected)
    assert len(found.recordings) == 60


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text_is_rejected(audio: Path) -> None:
    os.link(audio / "a" / "p0_take.wav", os.fsencode(audio) + b"/a/\xff.wav")
    rejected = scan(audio).rejected
    assert len(rejected) == 1 and "not valid UTF-8" in rejected[0].reason


def test_a_link_to_a_folder_above_ends(audio: Path) -> None:
    (audio / "a" / "loop").symlink_to(audio, target_is_directory=True)
    assert len(scan(audio).recordings) == 60


def test_digest_sees_what_decides(audio: Path) -> None:
    found = scan(audio)
    same = digest(found.recordings, found.rejected)
    assert same == digest(*scan(audio)[:2])
    assert same != digest(found.recordings[1:], found.rejected)
    assert same != digest(*scan(audio, group_from=r"p\d+")[:2])


@pytest.mark.parametrize(
    ("names", "flags", "message"),
    [
        ([], {}, "no audio in it"),
        (["x.wav"], {}, "audio (1), but in no folder of a class"),
        (["a/x.wav"], {}, "one class only, 'a'"),
        (["a/x.wav", "b/x.wav"], {"group_from": "(x"}, "no regular expression"),
        (["a/x1.wav", "b/x.wav", "b/y.wav"], {"fold_from": "[0-9]"}, "'b/x.wav' (2 of 3 files)"),
        (["a/x1.wav", "b/x.wav"], {"group_from": "x([0-9])?"}, "does not match 'b/x.wav' (1 of 2"),
    ],
)
def test_bad_input_is_named(tmp_path, names, flags, message):
    (tmp_path / "audio").mkdir()
    with pytest.raises(UserError) as error:
        scan(make(tmp_path / "audio", *names), **flags)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        scan(tmp_path / "nowhere")


def test_describe_counts(audio: Path) -> None:
    text = describe(scan(audio, group_from=r"p\d+"))
    for line in ("recordings   60", "groups       30", "8000 Hz (60)", "channels     1 (60)"):
        assert line in text


def test_natural_order() -> None:
    names = ["10", "9", "fold2", "fold10", "a", "²"]
    assert sorted(names, key=natural) == ["9", "10", "a", "fold2", "fold10", "²"]
