"""Shortcuts: what is planted is told, what is independent of the class is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import hashes, lines
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

from shards.__main__ import main
from shards.acoustics import acoustics
from shards.build import build
from shards.index import open_set
from shards.shortcuts import deal, describe, judge, permutations

RATE = 16000
SETTINGS: dict[str, Any] = {"segment_seconds": 1.0, "n_mels": 32, "n_fft": 1024, "folds": 2}

Change = Callable[[np.ndarray, int], tuple[np.ndarray, int, str]]


def make(audio: Path, change: Change, per_class: int = 20) -> Path:
    """Noise of two classes whose level, length and container are dealt alike; `change` plants."""
    for label in (0, 1):
        for n in range(per_class):
            random = np.random.default_rng([label, n])
            wave = 10 ** random.uniform(-2, -1) * random.standard_normal(RATE + 50 * n)
            wave, rate, suffix = change(wave, label)
            file = audio / "ab"[label] / f"{n}.{suffix or ('wav', 'flac')[n % 2]}"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, wave.clip(-1, 1), rate)
    return audio


def told(audio: Path, out: Path, **words: Any) -> set[str]:
    build(str(audio), str(out), workers=1, **(SETTINGS | words))
    return {x["property"] for x in open_set(out).info["shortcuts"]}


def slower(wave: np.ndarray, label: int) -> tuple[np.ndarray, int, str]:
    """Class a at 8 kHz, class b at 16 kHz; as long as each other."""
    return (wave, RATE, "") if label else (wave[::2], RATE // 2, "")


PLANTED: dict[str, tuple[Change, set[str]]] = {
    "rate": (slower, {"sample_rate", "band_limit"}),
    "channels": (lambda w, k: (np.stack([w] * (1 + k), 1), RATE, ""), {"channels"}),
    "container": (lambda w, k: (w, RATE, ("wav", "flac")[k]), {"container"}),
    "silence": (
        lambda w, k: (np.concatenate([np.zeros(2000 * k), w[: RATE - 2000 * k]]), RATE, ""),
        {"leading_silence"},
    ),
    "level": (lambda w, k: (w / np.abs(w).max() * (0.05, 0.5)[k], RATE, ""), {"level"}),
    "length": (lambda w, k: (np.resize(w, len(w) + RATE * k), RATE, ""), {"seconds"}),
    "nothing": (lambda w, k: (w, RATE, ""), set()),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_told(tmp_path: Path, planted: str) -> None:
    change, expected = PLANTED[planted]
    assert told(make(tmp_path / "audio", change), tmp_path / "set") == expected


def test_build_and_info_say_so_and_the_bytes_stay_the_same(tmp_path, capsys):
    audio = make(tmp_path / "audio", slower)
    said = build(str(audio), str(tmp_path / "1"), workers=1, **SETTINGS)
    build(str(audio), str(tmp_path / "2"), workers=2, **SETTINGS)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")
    line = "sample_rate alone tells the classes apart with balanced accuracy 1.00 (chance 0.50)"
    assert line in said
    assert main(["info", str(tmp_path / "1")]) == 0
    assert line in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "1")]) == 0


def test_a_group_per_class_proves_nothing(tmp_path: Path) -> None:
    audio = make(tmp_path / "audio", slower)
    assert told(audio, tmp_path / "set", group_from="^([ab])/", folds=None, split="1,0,0") == set()
    assert {line["group"] for line in lines(tmp_path / "set")} == {"a", "b"}


@pytest.mark.parametrize("seed", range(8))
def test_independent_values_are_not_told(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, groups = np.repeat([0, 1, 2], 20), np.arange(60) // 2
    for values in (random.integers(0, 3, 60), random.standard_normal(60)):
        assert judge(values[:, None], labels, groups, deal(labels, groups)) == ({}, None)


def test_a_source_that_its_groups_carry_is_not_told() -> None:
    values = np.repeat(np.random.default_rng(0).standard_normal(12), 10)[:, None]
    labels, groups = np.repeat([0, 1] * 6, 10), np.repeat(np.arange(12), 10)
    assert judge(values, labels, groups, deal(labels, groups)) == ({}, None)


def test_accuracy_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, groups = random.integers(0, 2, 200), random.integers(0, 40, 200)
    values = labels[:, None] + random.normal(0, 0.4, (200, 1))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    guess = np.empty(200, int)
    for train, test in folds.split(values, labels, groups):
        tree = DecisionTreeClassifier(max_depth=2, class_weight="balanced", random_state=0)
        guess[test] = tree.fit(values[train], labels[train]).predict(values[test])
    verdict, one = judge(values, labels, groups, deal(labels, groups))
    assert verdict["balanced_accuracy"] == round(balanced_accuracy_score(labels, guess), 4)
    assert verdict["chance"] == 0.5 and one is None


def test_one_class_of_many_can_stand_out() -> None:
    labels, groups = np.repeat(np.arange(10), 10), np.arange(100)
    verdict, one = judge((labels == 4)[:, None] * 1.0, labels, groups, deal(labels, groups))
    assert (verdict, one) == ({"balanced_accuracy": 1.0, "chance": 0.5}, 4)
    line = describe([{"property": "channels", **verdict, "class": "e"}])[0]
    assert "channels alone tells class 'e' from the others with balanced accuracy 1.00" in line


def test_permutations_keep_the_groups_of_one_class_whole() -> None:
    labels, groups = np.repeat([0, 1, 1, 0], 5), np.repeat(np.arange(4), 5)
    for permuted in permutations(labels, groups):
        assert all(len(set(permuted[groups == g])) == 1 for g in range(4))
    mixed = next(permutations(np.arange(20) % 2, groups))
    assert mixed.sum() == 10


def test_acoustics_of_a_made_spectrogram() -> None:
    values = np.full((1, 20, 50), -100.0, np.float16)
    values[0, :8, 10:40] = -30  # silence, sound in eight bands, padding
    level, silence, limit = acoustics(values.astype("f4"))
    assert level == pytest.approx(-30 + 10 * np.log10(8), abs=0.01)
    assert (silence, limit) == (10, 7)


@pytest.mark.parametrize("silent", [0, 7, 40])
@pytest.mark.parametrize("segments", [1, 3])
def test_acoustics_go_by_their_definition(segments: int, silent: int) -> None:
    draws = np.random.default_rng(segments * 100 + silent)
    values = draws.uniform(-60, -20, (segments, 16, 40)).astype("f4")
    values[0, :, :silent] = -100  # 40: all of the first segment
    values[:, 12:] -= 75  # faint bands
    np.maximum(values, -100, out=values)
    power = 10 ** (values.astype("f8") / 10)
    frames = power.sum(axis=1)
    heard = frames > 2 * 16 * 1e-10
    loud = np.flatnonzero(frames[0] > frames.max() * 1e-4)
    level, silence, limit = acoustics(values)
    if heard.any():
        quartiles = [np.sort(values[:, m][heard])[3 * heard.sum() // 4] for m in range(16)]
        assert level == pytest.approx(10 * np.log10(frames[heard].mean()), abs=0.01)
        assert silence == (loud[0] if len(loud) else 40)
        assert limit == max(np.flatnonzero(np.array(quartiles) > max(quartiles) - 60))
    else:
        assert (level, silence, limit) == (-100, 0, 0)
