"""Made-up deepfakes, music and drones: their sounds are physics, their classes have no giveaway."""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import periodogram, stft
from test_demo import digests

from shards.__main__ import main
from shards.build import build
from shards.errors import UserError
from shards.index import open_set
from shards.shortcuts import find_shortcuts
from shards.sources import deepfake, drone, genre, vocoder
from shards.sources.demo import synthesize
from shards.sources.genre import STYLES, Song
from shards.sources.speech import RATE, Speaker, glottis, speech
from shards.sources.vocoder import ATTACKS, UNSEEN

SMALL = {"deepfake": 16, "genre": 4, "drone": 8}
BUILDS = {
    "deepfake": {"sample_rate": 16000},
    "genre": {"sample_rate": 22050, "folds": 2, "group_from": "[a-z]+-band[0-9]+"},
    "drone": {"sample_rate": 16000, "folds": 3, "group_from": "place-[0-9]+"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small folder of each kind, of recordings of 1 s."""
    root = tmp_path_factory.mktemp("kinds")
    for kind, per_class in SMALL.items():
        synthesize(root / kind, 1, per_class, kind=kind, seconds=1)
    return {kind: root / kind for kind in SMALL}


def tone(hertz: float, seconds: float = 2.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def power_at(wave: np.ndarray, hertz: float, rate: int = RATE) -> float:
    """Mean power within 10 Hz."""
    f, density = periodogram(wave, rate)
    return float(density[np.abs(f - hertz) <= 10].sum() * (f[1] - f[0]))


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for kind in SMALL:
        for out, seed in (("one", 1), ("two", 1), ("other", 2)):
            synthesize(tmp_path / kind / out, seed, 1, kind=kind, seconds=0.5)
        one, two, other = (digests(tmp_path / kind / out) for out in ("one", "two", "other"))
        assert one == two
        assert not {one[name] for name in one if name.endswith("wav")} & set(other.values())


def test_nothing_but_the_sound_tells_the_classes(folders, tmp_path):
    for kind, words in BUILDS.items():
        table = folders[kind] / "manifest.csv"
        audio = table if table.exists() else folders[kind]
        build(str(audio), str(tmp_path / kind), segment_seconds=1, workers=1, **words)
        made = open_set(tmp_path / kind)
        assert find_shortcuts(made) == []
        assert len(set(made.info["classes"])) == {"deepfake": 2, "genre": 4, "drone": 3}[kind]
        headers = {(h.samplerate, h.channels, h.frames) for h in map(soundfile.info, waves(audio))}
        assert len(headers) == 1


def waves(audio: Path) -> list[Path]:
    return sorted((audio.parent if audio.is_file() else audio).rglob("*.wav"))


def test_speakers_and_the_unseen_attack_keep_to_their_parts(folders):
    rows = list(csv.DictReader((folders["deepfake"] / "manifest.csv").open()))
    assert {row["label"] for row in rows} == {"Real", "Fake"} and len(rows) == 32
    parts = defaultdict(set)
    attacks = defaultdict(Counter)
    for row in rows:
        assert (folders["deepfake"] / row["path"]).is_file()
        assert row["group"] in row["path"]
        parts[row["group"]].add(row["split"])
        if row["label"] == "Fake":
            attacks[row["split"]][row["path"].split("/")[1].removeprefix("attack-")] += 1
    assert all(len(found) == 1 for found in parts.values())
    seen = set(ATTACKS) - {UNSEEN}
    assert set(attacks["train"]) == set(attacks["val"]) == seen
    assert set(attacks["test"]) == set(ATTACKS)
    labels = Counter((row["split"], row["label"]) for row in rows)
    assert all(labels[part, "Real"] == labels[part, "Fake"] for part in parts)


def test_both_classes_have_the_same_speakers_and_lengths():
    found = defaultdict(lambda: defaultdict(list))
    for take in deepfake.plan(0, 40, deepfake.SECONDS):
        for name in ("group", "seconds"):
            found[take.label, take.split][name].append(getattr(take, name))
    for part in ("train", "val", "test"):
        for name, values in found["Real", part].items():
            assert sorted(values) == sorted(found["Fake", part][name])


def test_imaging_mirrors_what_is_below_4_khz():
    wave = vocoder.imaging(np.random.default_rng(0), tone(1000) + tone(6000), 0.4)
    assert power_at(wave, 1000) == pytest.approx(0.5, rel=0.2)
    assert power_at(wave, 6000) < 1e-3
    assert power_at(wave, 7000) > 1e-3 > 100 * power_at(wave, 6500)
    noise = np.random.default_rng(1).standard_normal(4 * RATE)
    density = periodogram(vocoder.imaging(np.random.default_rng(0), noise, 0.4), RATE)[1]
    below, above = density[4000:12000], density[-4001:-12001:-1]  # 1 to 3 kHz; 7 to 5
    assert np.corrcoef(np.log(below), np.log(above))[0, 1] > 0.7


def test_band_limit_cuts_what_is_above():
    wave = vocoder.band(np.random.default_rng(0), tone(1000) + tone(7000), 5000)
    assert power_at(wave, 1000) == pytest.approx(0.5, rel=0.05)
    assert power_at(wave, 7000) < 1e-4


def test_phase_loss_keeps_the_magnitudes_alone():
    voice = Speaker(pitch=120, tract=1, breath=0.03, jitter=0.01, tilt=-7, tempo=4)
    said = speech(np.random.default_rng(1), voice, 2 * RATE)
    guessed = vocoder.phase(np.random.default_rng(0), said, 1)
    assert abs(np.corrcoef(said, guessed)[0, 1]) < 0.5
    before, after = (np.abs(stft(wave, nperseg=512)[2]) for wave in (said, guessed))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.9


def test_smoothing_flattens_resonances():
    rng = np.random.default_rng(0)
    f = np.fft.rfftfreq(4 * RATE, 1 / RATE)
    ripple = 10 ** (np.cos(2 * np.pi * f / 400) * 10 / 20)
    wave = np.fft.irfft(np.fft.rfft(rng.standard_normal(4 * RATE)) * ripple)
    smoothed = vocoder.smooth(rng, wave, 0.8)

    def contrast(sound: np.ndarray) -> float:
        density = periodogram(sound, RATE)[1][: len(f)]
        return float(density[ripple > 2].mean() / density[ripple < 0.5].mean())

    assert contrast(smoothed) < 0.5 * contrast(wave)


def test_a_voice_has_harmonics_of_its_pitch():
    voice = Speaker(pitch=150, tract=1, breath=0.0, jitter=0.0, tilt=-6, tempo=4)
    wave = glottis(np.random.default_rng(0), voice, np.full(2 * RATE, 150.0))
    harmonics = [power_at(wave, 150 * k) for k in range(1, 11)]
    between = [power_at(wave, 150 * k + 75) for k in range(1, 11)]
    assert min(harmonics) > 20 * max(between)
    fall = 10 * np.log10(harmonics[0] / harmonics[7])  # three octaves
    assert fall == pytest.approx(18, abs=2)


def test_a_rotor_has_its_blade_pass_line_and_the_shafts_beside_it():
    wave = drone.rotor(np.random.default_rng(0), np.full(4 * RATE, 130.0))
    f, density = periodogram(wave, RATE)
    assert f[density.argmax()] % 130 == pytest.approx(0, abs=0.5)
    for hertz, above in ((130, 1000), (260, 1000), (390, 1000), (65, 10), (195, 10), (325, 10)):
        near = density[(np.abs(f - hertz) > 5) & (np.abs(f - hertz) < 25)]
        assert density[np.abs(f - hertz).argmin()] > above * np.median(near)  # the shaft: at half


@pytest.mark.parametrize("seed", range(3))
def test_a_drone_is_lines_and_a_car_is_low_noise(seed):
    n = RATE
    flying = drone.drone(np.random.default_rng(seed), n)
    driving = drone.car(np.random.default_rng(seed), n)
    spectrum = periodogram(driving, RATE)
    low = spectrum[1][spectrum[0] < 2500].sum() / spectrum[1].sum()
    assert low > 0.8
    assert power_share(flying) > power_share(driving)


def power_share(wave: np.ndarray) -> float:
    """Of the strongest fortieth of the lines below 2 kHz."""
    density = np.sort(periodogram(wave, RATE)[1][: 2000 * len(wave) // RATE])[::-1]
    return float(density[: len(density) // 40].sum() / density.sum())


def song(beat: float) -> Song:
    return Song(8 * genre.RATE, beat, 48, (0, 5, 7, 0))


def onsets(wave: np.ndarray, low: float, high: float, step: float) -> np.ndarray:
    """Energy between two frequencies at the moments 0, step, 2 step, ... s."""
    f, t, values = stft(wave, genre.RATE, nperseg=1024, noverlap=768)
    energy = (np.abs(values[(f > low) & (f < high)]) ** 2).sum(axis=0)
    at = np.searchsorted(t, np.arange(0, t[-1] - 0.2, step) + 0.02)
    return energy[at]


def test_electronic_has_a_kick_on_every_beat():
    rng = np.random.default_rng(3)
    kit = STYLES["electronic"](rng, song(0.5))[-1]
    strikes = onsets(kit, 20, 90, 0.25)
    assert strikes[0::2].mean() > 5 * strikes[1::2].mean()


def test_rock_has_its_snare_on_two_and_four():
    kit = STYLES["rock"](np.random.default_rng(3), song(0.5))[-1]
    strikes = onsets(kit, 800, 3000, 0.5)
    assert strikes[1::2].mean() > 5 * strikes[0::2].mean()


def test_jazz_swings():
    kit = STYLES["jazz"](np.random.default_rng(3), song(0.5))[-1]
    strikes = onsets(kit, 4000, 11000, 0.05)  # ten a beat: the swung note is nearest to the 7th
    by_place = strikes[: len(strikes) // 20 * 20].reshape(-1, 20).mean(axis=0)
    assert max(by_place[16:18]) > 2 * by_place[15]


def test_classical_has_a_chord_in_tune():
    strings = STYLES["classical"](np.random.default_rng(3), song(0.5))[0]
    f, density = periodogram(strings[: 2 * genre.RATE], genre.RATE)
    root = 440 * 2 ** ((48 - 69) / 12)
    fifth = root * 2 ** (7 / 12)
    floor = np.median(density[(f > 100) & (f < 1000)])
    for hertz in (root, fifth, 2 * root):
        assert density[np.abs(f - hertz) < 3].max() > 100 * floor


def test_the_command_makes_a_kind_and_says_how_to_build_it(tmp_path, capsys):
    out = str(tmp_path / "set")
    assert main(["demo", out, "--kind=drone", "--per_class=1", "--seconds=0.5"]) == 0
    assert (
        f"python -m shards build {out} {out}-shards --sample_rate=16000" in capsys.readouterr().out
    )
    assert sorted(path.parent.name for path in waves(tmp_path / "set")) == [
        "car",
        "drone",
        "speech",
    ]
    assert main(["demo", str(tmp_path / "other"), "--kind=dron"]) == 2
    assert "did you mean drone?" in capsys.readouterr().err
    with pytest.raises(UserError, match="at least 0"):
        synthesize(tmp_path / "other", kind="genre", seconds=0.1)
    with pytest.raises(UserError, match="give a new folder"):
        synthesize(tmp_path / "set", 0, 1, kind="drone", seconds=2)
