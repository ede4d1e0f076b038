"""Copies of recordings: found whatever was done to them, and nothing else is."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import hashes, lines, read_plainly
from scipy.signal import butter, sosfilt

from shards import duplicates
from shards.__main__ import main
from shards.build import build
from shards.duplicates import Prints, find, find_copies
from shards.errors import UserError
from shards.index import open_set
from shards.verify import verify

RATE, SECONDS = 16000, 4.0
SETTINGS: dict[str, Any] = {"segment_seconds": SECONDS, "n_mels": 64, "workers": 1}


def rain(random: np.random.Generator) -> np.ndarray:
    """Steady noise, the same colour every time."""
    wave = sosfilt(butter(2, 3000, fs=RATE, output="sos"), random.standard_normal(2 * RATE * 4))
    return 0.05 * wave[: round(RATE * SECONDS)]


def knocks(random: np.random.Generator) -> np.ndarray:
    """Equal knocks at random times over a faint hiss."""
    time = np.arange(round(RATE * SECONDS)) / RATE
    wave = 0.002 * random.standard_normal(len(time))
    for start in random.uniform(0, SECONDS, 6):
        since = np.maximum(time - start, 0)
        wave += 0.3 * (time > start) * np.exp(-since / 0.05) * np.sin(2 * np.pi * 700 * since)
    return wave


def waves(per_class: int = 6) -> Iterator[tuple[str, np.ndarray]]:
    for place, sound in enumerate((rain, knocks)):
        for n in range(per_class):
            random = np.random.default_rng([place, n])
            yield f"{sound.__name__}/{n}", sound(random).astype(np.float32)


def shifted(wave: np.ndarray) -> np.ndarray:
    return np.concatenate([wave[round(0.3 * RATE) :], np.zeros(round(0.3 * RATE), np.float32)])


def steps(wave: np.ndarray) -> np.ndarray:
    """Rounded to 16 bit; libsndfile rounds in another way for each container."""
    return (np.round(wave * 2**15) / 2**15).astype(np.float32)


def put(path: Path, wave: np.ndarray, **words: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp3":
        words = {"bitrate_mode": "CONSTANT", "compression_level": 0.63}  # 64 kb/s at 16 kHz
    soundfile.write(path, wave, RATE, **words)
    if path.suffix == ".mp3":
        assert path.stat().st_size * 8 / SECONDS < 68_000


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve recordings of two classes, all different."""
    audio = tmp_path_factory.mktemp("originals")
    for name, wave in waves():
        put(audio / f"{name}.wav", wave, subtype="PCM_16")
    return audio


DONE = {
    "mp3": ("mp3", lambda wave: wave),
    "quieter": ("wav", lambda wave: wave / 4),
    "later": ("wav", shifted),
    "all": ("mp3", lambda wave: shifted(wave) / 4),
}


@pytest.mark.parametrize("done", DONE)
def test_changed_copies_are_found_and_nothing_else(tmp_path: Path, done: str) -> None:
    suffix, change = DONE[done]
    for name, wave in waves():
        put(tmp_path / "audio" / f"{name}.wav", wave)
        put(tmp_path / "audio" / f"{name}-copy.{suffix}", change(wave))
    build(str(tmp_path / "audio"), str(tmp_path / "set"), **SETTINGS)
    found = find(open_set(tmp_path / "set"))
    pairs = {tuple(sorted(Path(line["path"]).stem for line in x[1:])) for x in found}
    assert pairs == {(str(n), f"{n}-copy") for n in range(6)}
    assert len(found) == 12 and not any(x.pair.is_exact for x in found)


def test_unrelated_recordings_are_no_copies(originals: Path, tmp_path: Path) -> None:
    said = build(str(originals), str(tmp_path / "set"), **SETTINGS)
    assert find(open_set(tmp_path / "set")) == []
    assert "duplicates" not in said


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings, with exact copies of three in other containers and under other names."""
    audio = tmp_path_factory.mktemp("leaking")
    for name, wave in waves():
        put(audio / f"{name}.wav", steps(wave), subtype="PCM_16")
    for n, wave in enumerate(dict(waves())[f"rain/{n}"] for n in range(3)):
        put(audio / "rain" / f"copy-of-{n}.flac", steps(wave), subtype="PCM_16")
        put(audio / "rain" / f"again-{n}.aiff", wave if n else steps(wave), subtype="PCM_24")
    return audio


def test_exact_copies_whatever_the_container(leaking: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    said = build(str(leaking), str(out), **SETTINGS)
    found = find(open_set(out))
    exact = [x for x in found if x.pair.is_exact]
    assert (len(found), len(exact)) == (
        6,
        4,
    )  # 16-bit ones; what 24 bit add to the two others makes them near
    assert all(x.pair.agreement > 0.99 for x in found)
    payloads = {x["__key__"].rpartition("-")[0]: x["npy"].tobytes() for x in read_plainly(out)}
    assert len(payloads) - len(set(payloads.values())) == len(exact)
    across = sum(x.first["fold"] != x.second["fold"] for x in found)
    assert across and f"{across} across folds" in said


def test_the_command_reports_and_leaves_the_set_as_it_is(leaking, tmp_path, capsys):
    out = tmp_path / "set"
    build(str(leaking), str(out), **SETTINGS)
    before = hashes(out)
    assert main(["duplicates", str(out)]) == 0
    some = capsys.readouterr().out.splitlines()
    assert main(["duplicates", str(out), "--all", f"--output={tmp_path / 'd.csv'}"]) == 0
    every = capsys.readouterr().out.splitlines()
    with open(tmp_path / "d.csv", newline="") as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == len(every) - 1 == 6
    leaks = [row for row in rows if row["fold_1"] != row["fold_2"]]
    assert len(leaks) == len(some) - 1 == sum(row["leaks"] == "1" for row in rows) > 0
    assert hashes(out) == before and verify(str(out)) == []
    with pytest.raises(SystemExit) as left:
        main(["duplicates", str(out), "--strict"])
    assert left.value.code == 1


@pytest.mark.parametrize("seed", range(3))
def test_group_keeps_copies_on_one_side(leaking: Path, tmp_path: Path, seed: int) -> None:
    build(str(leaking), str(tmp_path / "set"), on_duplicate="group", seed=seed, folds=3, **SETTINGS)
    found = find(open_set(tmp_path / "set"))
    assert len(found) == 6 and not any(x.leaks for x in found)
    groups = {line["path"]: line["group"] for line in lines(tmp_path / "set")}
    assert len(groups) == 18 and len(set(groups.values())) == 12
    for n in range(3):
        same = {groups[f"rain/{name}"] for name in (f"{n}.wav", f"again-{n}.aiff")}
        assert same == {groups[f"rain/copy-of-{n}.flac"]}


def test_drop_keeps_the_first_and_lists_the_others(leaking: Path, tmp_path: Path) -> None:
    build(str(leaking), str(tmp_path / "set"), on_duplicate="drop", **SETTINGS)
    kept = [line["path"] for line in lines(tmp_path / "set")]
    assert len(kept) == 12 and find(open_set(tmp_path / "set")) == []
    with open(tmp_path / "set" / "rejected.csv", newline="") as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == 6
    assert all(row["reason"].removeprefix("a copy of ") in kept for row in rows)
    assert verify(str(tmp_path / "set")) == []


@pytest.mark.parametrize("rule", ["group", "drop"])
def test_the_bytes_do_not_depend_on_the_workers(leaking: Path, tmp_path: Path, rule: str) -> None:
    for workers in (1, 2):
        words = SETTINGS | {"workers": workers, "on_duplicate": rule}
        build(str(leaking), str(tmp_path / str(workers)), **words)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


def test_given_folds_that_part_copies_are_refused(originals: Path, tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    for name, wave in waves(2):
        for fold in "12":
            put(audio / f"{name}-fold{fold}.wav", wave)
    words = SETTINGS | {"fold_from": r"fold(\d)"}
    with pytest.raises(UserError, match="are copies, but --fold_from puts them into"):
        build(str(audio), str(tmp_path / "set"), on_duplicate="group", **words)
    with pytest.raises(UserError, match="on_duplicate=hide: has to be one of warn, group, drop"):
        build(str(audio), str(tmp_path / "set"), on_duplicate="hide", **words)


def test_append_is_refused_where_copies_would_move_what_is_there(originals, tmp_path):
    words = SETTINGS | {"on_duplicate": "group"}
    with pytest.raises(UserError, match="--append with --on_duplicate=group"):
        build(str(originals), str(tmp_path / "set"), append=True, **words)


def prints(grains: np.ndarray, xxh3: list[int]) -> Prints:
    return Prints(np.arange(len(grains)), np.array(xxh3, np.uint64), grains, 5.0)


def test_common_silence_is_no_copy() -> None:
    random = np.random.default_rng(0)
    grains = np.rint(20 * random.standard_normal((4, 157, 32))).clip(-100, 100).astype(np.int8)
    grains[2:] = 0  # digital silence: the same bytes in both recordings
    found = Prints(np.array([0, 1, 0, 1]), np.array([1, 2, 3, 3], np.uint64), grains, 5.0)
    order = np.argsort(found.recording, kind="stable")
    found = Prints(found.recording[order], found.xxh3[order], grains[order], 5.0)
    assert find_copies(found) == []
    shared = Prints(
        found.recording, np.array([3, 1, 3, 2], np.uint64), found.grains[[0, 1, 0, 3]], 5
    )
    assert [(x.first, x.second, x.is_exact) for x in find_copies(shared)] == [(0, 1, False)]


def test_a_short_bang_is_too_little_to_tell() -> None:
    random = np.random.default_rng(0)
    bang = np.zeros((2, 157, 32), np.int8)
    bang[:, 20:30] = np.rint(20 * random.standard_normal((10, 32))).clip(-100, 100)
    assert find_copies(prints(bang, [1, 2])) == []
    bang[:, 30:110] = np.rint(20 * random.standard_normal((80, 32))).clip(-100, 100)
    assert [x.is_exact for x in find_copies(prints(bang, [1, 2]))] == [False]
    assert [x.is_exact for x in find_copies(prints(bang, [1, 1]))] == [True]


@pytest.mark.parametrize("common", [0.0, 2.0])
def test_the_search_finds_the_likest_behind_each_vector(
    common: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("BLOCK", 64), ("TILE", 150), ("NEIGHBOURS", 8)):
        monkeypatch.setattr(duplicates, name, value)
    table = np.random.default_rng(0).standard_normal((300, 32)) + common
    table = np.rint(1000 * table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    owner, likeness = np.arange(300) // 2, table @ table.T
    expected = set()
    for a in range(300):
        behind = [b for b in range(300) if owner[b] > owner[a] and likeness[a, b] >= 0.22e6]
        expected |= {(a, b) for b in sorted(behind, key=lambda b: (-likeness[a, b], b))[:8]}
    pairs = (duplicates.neighbours(table, owner, first) for first in range(0, 300, 64))
    found = [(a, b) for p in pairs for a, b in zip(*(x.tolist() for x in p), strict=True)]
    assert set(found) == expected and len(found) == len(expected) > 1500
