"""shards.condition against pyloudnorm, librosa and the formulas."""

import json
from pathlib import Path

import librosa
import numpy as np
import pyloudnorm
import pytest
import soundfile
from conftest import RATE, build_tones, lines, read_plainly

from shards.condition import Conditioning, integrated_loudness, loud_part


def noise(seconds: float, level: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype("f4")


def speech_like(rate: int = 16000) -> np.ndarray:
    """Loud, quiet and silent stretches: the gates of BS.1770 have something to do."""
    levels = [0.1, 0.001, 0.05, 0.0, 0.2, 0.01]
    return np.concatenate([noise(1.3, x, rate, n) for n, x in enumerate(levels)])


def tone(hertz: float, rate: int = 16000, seconds: float = 2.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f4")


def measured(wave: np.ndarray, rate: int = 16000) -> float:
    return pyloudnorm.Meter(rate).integrated_loudness(wave.astype(np.float64))


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_loudness_is_pyloudnorms(rate: int) -> None:
    for wave in (speech_like(rate), noise(0.45, 0.1, rate), noise(20, 0.03, rate)):
        assert integrated_loudness(wave, rate) == pytest.approx(measured(wave, rate), abs=0.05)


@pytest.mark.parametrize("target", [-30.0, -23.0, -16.0])
def test_a_loudness_asked_for_is_measured(target: int) -> None:
    for wave in (speech_like(), noise(3, 0.01), tone(1000)):
        Conditioning(sample_rate=16000, loudness=target).level(wave)
        assert measured(wave) == pytest.approx(target, abs=0.1)


def test_loudness_has_its_limits() -> None:
    faint, peaky = noise(2, 1e-4), noise(2, 0.001)
    peaky[1000] = 0.5
    for wave, factor in ((faint.copy(), 10**1.5), (peaky.copy(), 2.0), (faint / 10, 10**1.5)):
        before = wave.copy()
        Conditioning(sample_rate=16000, loudness=-10).level(wave)
        np.testing.assert_allclose(wave, before * factor, rtol=1e-5)
    overdriven = noise(2, 3.0)
    Conditioning(sample_rate=16000, loudness=-1).level(overdriven)
    assert np.abs(overdriven).max() == pytest.approx(1.0)


def test_what_is_shorter_than_a_block_is_measured_as_if_it_went_on() -> None:
    short = tone(1000, seconds=0.1)
    assert integrated_loudness(short, 16000) == pytest.approx(measured(tone(1000)), abs=0.1)
    assert np.isfinite(integrated_loudness(short[:1] + 0.1, 16000))


@pytest.mark.parametrize("peak", [0.0, -1.0, -20.0])
def test_the_peak_is_what_was_asked(peak: float) -> None:
    for wave in (noise(1, 0.01), -np.abs(noise(1, 2.0))):
        Conditioning(sample_rate=16000, peak=peak).level(wave)
        assert 20 * np.log10(np.abs(wave).max()) == pytest.approx(peak, abs=1e-4)


@pytest.mark.parametrize("hertz", [50.0, 100.0, 200.0, 1000.0])
def test_a_tone_falls_by_the_filters_formula(hertz: float) -> None:
    """Butterworth, order 4, by the bilinear transform."""
    wave = tone(hertz)
    before = wave.copy()
    wave, offset = Conditioning(sample_rate=16000, highpass=100.0).trimmed(wave)
    warped = np.tan(np.pi * 100.0 / 16000) / np.tan(np.pi * hertz / 16000)
    expected = -10 * np.log10(1 + warped**8)
    kept = np.square(wave[8000:]).mean() / np.square(before[8000:]).mean()
    assert 10 * np.log10(kept) == pytest.approx(expected, abs=0.05) and offset == 0


def test_a_dc_offset_goes_without_a_click() -> None:
    wave, _ = Conditioning(sample_rate=16000, highpass=50.0).trimmed(np.full(200_000, 0.3, "f4"))
    assert np.abs(wave).max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("below", [20, 40, 60])
@pytest.mark.parametrize("n", [1, 511, 512, 2049, 30_000, 40_003])
def test_trim_is_librosas(below: int, n: int) -> None:
    envelope = np.exp(-(((np.arange(n) / n - 0.4) / 0.1) ** 2))
    wave = (noise(n / 16000, 0.1) * envelope).astype("f4")
    _, (first, last) = librosa.effects.trim(wave, top_db=below)
    assert loud_part(wave, below) == (first, last)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """2.5 s each: half a second of silence, then a tone; and one of 0.21 s."""
    for label, hertz in (("a", 500.0), ("b", 1500.0)):
        (tmp_path / "audio" / label).mkdir(parents=True)
        for n in range(4):
            wave = np.concatenate([np.zeros(RATE // 2), tone(hertz, RATE)])
            soundfile.write(tmp_path / "audio" / label / f"{n}.wav", wave, RATE)
    soundfile.write(tmp_path / "audio" / "b" / "short.wav", tone(700, RATE, 0.21), RATE)
    return tmp_path / "audio"


def test_rules_of_a_build(uneven: Path, tmp_path: Path) -> None:
    words = {"folds": 2, "group_from": None, "overlap": 0.5}
    build_tones(uneven, tmp_path / "plain", **words, pad="repeat", tail="drop")
    starts = {}
    for sample in read_plainly(tmp_path / "plain"):
        starts.setdefault(sample["json"]["recording"], []).append(sample["json"]["start"])
    assert starts["a/0.wav"] == [0.0, 0.5, 1.0, 1.5] and starts["b/short.wav"] == [0.0]
    info = json.loads((tmp_path / "plain" / "dataset.json").read_text())
    assert info["segment"]["pad"] == "repeat" and info["segment"]["tail"] == "drop"
    assert info["settings"]["loudness"] is None and info["settings"]["min_seconds"] == 0

    soundfile.write(uneven / "b" / "silent.wav", np.zeros(RATE), RATE)
    build_tones(uneven, tmp_path / "more", **words, trim_silence=40, min_seconds=0.3, peak=-6.0)
    samples = read_plainly(tmp_path / "more")
    first = min(s["json"]["start"] for s in samples)
    assert first == pytest.approx(0.5, abs=0.13)  # in the file, before trimming: within 1024 / RATE
    rejected = (tmp_path / "more" / "rejected.csv").read_text().splitlines()
    assert set(rejected[1:]) == {"b/short.wav,too short: 0.21 s", "b/silent.wav,silent"}
    assert {x["seconds"] for x in lines(tmp_path / "more")} == {2.5}
    quiet, loud = read_plainly(tmp_path / "plain"), samples
    by = {(s["json"]["recording"], s["json"]["start"]): s["npy"].max() for s in quiet}
    top = max(s["npy"].max() for s in loud if s["json"]["recording"] == "a/0.wav")
    assert by["a/0.wav", 1.0] == pytest.approx(top, abs=0.2)  # 0.5 is -6.02 dBFS


def test_clipping_and_offset_are_counted(uneven: Path, tmp_path: Path) -> None:
    wave = np.clip(4 * tone(500, RATE), -1, 1)
    soundfile.write(uneven / "a" / "clipped.wav", wave, RATE, subtype="PCM_16")
    soundfile.write(uneven / "a" / "off.wav", 0.1 * wave + 0.25, RATE, subtype="FLOAT")
    said = build_tones(uneven, tmp_path / "set", folds=2, group_from=None)
    assert "clipped     1 recording" in said and "DC offset   1 recording" in said
    found = {line["path"]: line for line in lines(tmp_path / "set")}
    # of the 16 samples of a period, ten lie beyond 30 degrees of zero
    assert found["a/clipped.wav"]["clipped"] == 10 / 16
    assert found["a/off.wav"]["dc"] == pytest.approx(0.25, abs=1e-3)
    assert found["a/0.wav"]["clipped"] == 0 and abs(found["a/0.wav"]["dc"]) < 1e-4
