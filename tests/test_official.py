"""The heads of the field's benchmarks, line by line in a shell, on folders with official names."""

import csv
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from processes import ROOT

from shards.__main__ import main
from shards.index import ShardSet, open_set

RATE = 8000
#: Of ASVspoof: as we call it, as they do, and an attack in it.
PARTS = (("train", "train", "A01"), ("val", "dev", "A01"), ("test", "eval", "A07"))


def write(file: Path, number: int) -> None:
    """Half a second that no other file has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.random.default_rng(number).standard_normal(RATE // 2)
    soundfile.write(file, wave, RATE, subtype="PCM_16")


def table(file: Path, names: str, rows: list[tuple]) -> None:
    file.parent.mkdir(parents=True)
    with open(file, "w", newline="") as out:
        csv.writer(out).writerows([names.split(","), *rows])


def esc(folder: Path) -> None:
    """ESC-50: four categories, two of them of ESC-10, in five folds."""
    rows = []
    for number in range(20):
        clip, target = number // 2, number // 10 * 2 + number % 2
        fold = clip % 5 + 1
        name = f"{fold}-{1000 + clip}-{'AB'[number % 2]}-{target}.wav"
        category = ("dog", "sea_waves", "can_opening", "sheep")[target]
        write(folder / "ESC-50-master/audio" / name, number)
        rows.append((name, fold, target, category, target < 2, 1000 + clip, "AB"[number % 2]))
    names = "filename,fold,target,category,esc10,src_file,take"
    table(folder / "ESC-50-master/meta/esc50.csv", names, rows)


def urbansound8k(folder: Path) -> None:
    """Slices whose start and end are those in the clip that they were cut from, in ten folds."""
    rows = []
    for number in range(40):
        fold, target, clip = number % 10 + 1, number // 10, 7000 + number
        name, label = f"{clip}-{target}-0-0.wav", ("siren", "car_horn", "drilling", "gun_shot")
        write(folder / f"UrbanSound8K/audio/fold{fold}" / name, number)
        rows.append((name, clip, 4.5 * number, 4.5 * number + 0.5, 1, fold, target, label[target]))
    names = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    table(folder / "UrbanSound8K/metadata/UrbanSound8K.csv", names, rows)


def fsdd(folder: Path) -> None:
    """Two digits by three speakers, index 3 to 6: two of each in the official test part."""
    for number in range(24):
        speaker = ("george", "jackson", "lucas")[number % 3]
        write(folder / f"recordings/{number % 2}_{speaker}_{number // 6 + 3}.wav", number)


def asvspoof(folder: Path) -> None:
    """ASVspoof 2019 LA: a protocol a part, speakers and some attacks of their own."""
    protocols = folder / "LA/ASVspoof2019_LA_cm_protocols"
    protocols.mkdir(parents=True)
    for place, (_, part, attack) in enumerate(PARTS):
        lines = []
        for number in range(4):
            name, fake = f"LA_{part[0].upper()}_{1000 + number}", number % 2
            write(folder / f"LA/ASVspoof2019_LA_{part}/flac/{name}.flac", 10 * place + number)
            said = f"- {attack} spoof" if fake else "- - bonafide"
            lines.append(f"LA_00{place}{number // 2} {name} {said}\n")
        (protocols / f"ASVspoof2019.LA.cm.{part}.txt").write_text("".join(lines))


def head(config: str) -> str:
    """The lines of a config's head that are commands."""
    text = (ROOT / "configs" / f"{config}.yaml").read_text().partition("\n#\n")[0]
    return re.sub("^# ", "", text, flags=re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the lines are run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(text: str) -> ShardSet:
    """What the lines of `text` but those that train build of path/to/, where we are."""
    *lines, last = [line for line in text.splitlines() if " configs/" not in line]
    subprocess.run(["sh", "-ec", "\n".join(lines)], check=True)
    python, m, package, *words = shlex.split(last)
    assert (python, m, package) == ("python", "-m", "shards") and not main([*words, "--workers=1"])
    return open_set(words[2])


@pytest.mark.parametrize(
    ("config", "make", "classes", "folds", "recordings", "groups"),
    [
        ("esc10_crnn", esc, "dog sea_waves", 5, 10, 5),
        ("esc50_crnn", esc, "can_opening dog sea_waves sheep", 5, 20, 10),
        ("urbansound8k_crnn", urbansound8k, "car_horn drilling gun_shot siren", 10, 40, 40),
        ("fsdd_official", fsdd, "0 1", 0, 24, 24),
        ("fsdd_speakers", fsdd, "0 1", 3, 24, 3),
    ],
)
def test_official_folds_and_groups(config, make, classes, folds, recordings, groups, folder):
    make(folder / "path/to")
    found = built(head(config))
    assert found.class_names == classes.split() and len(found.folds) == folds
    told = [found.info[key] for key in ("recordings", "groups", "samples", "rejected")]
    assert told == [recordings, groups, recordings, 0]
    per_fold = np.unique(found.rows(np.arange(recordings))["fold"], return_counts=True)[1]
    assert (per_fold == recordings / max(folds, 1)).all()
    if not folds:
        assert found.info["counts"]["split"]["test"]["recordings"] == 12


def test_asvspoof_by_its_own_parts(folder):
    asvspoof(folder / "path/to")
    blocks = (ROOT / "docs/shards.md").read_text().split("```bash\n")
    block = next(block for block in blocks if "asvspoof.csv" in block)
    found = built(block.partition("\n```")[0])
    assert found.class_names == ["bonafide", "spoof"] and not found.info["rejected"]
    told = {
        (r["split"], r["label"], r.get("attack", ""), r["path"].partition("/")[0])
        for r in found.recordings()
    }
    assert told == {
        (part, label, attack if label == "spoof" else "", f"ASVspoof2019_LA_{name}")
        for part, name, attack in PARTS
        for label in ("bonafide", "spoof")
    }
