"""shards.audio against files made here and against arithmetic."""

import numpy as np
import pytest
import soundfile

from shards.audio import AudioError, decode, is_silent, probe


def sine(hz, rate, seconds, level=0.5):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype("f4")


@pytest.mark.parametrize("container", ["wav", "flac", "ogg", "mp3"])
def test_probe_reads_the_header(tmp_path, container):
    file = tmp_path / f"a.{container}"
    soundfile.write(file, np.stack([sine(440, 22050, 1.5)] * 2, axis=1), 22050)
    found = probe(file)
    assert (found.sample_rate, found.channels) == (22050, 2)
    assert found.seconds == pytest.approx(1.5, abs=0.06)


def test_mono_is_the_mean_of_the_channels(tmp_path):
    left, right = sine(440, 16000, 0.2), sine(1000, 16000, 0.2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16000, subtype="FLOAT")
    wave = decode(tmp_path / "a.wav", 16000)
    assert wave.dtype == np.float32
    np.testing.assert_allclose(wave, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_a_tone_survives_resampling(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", sine(1000, rate, 1.0), rate, subtype="FLOAT")
    wave = decode(tmp_path / "a.wav", 16000)
    assert abs(len(wave) - 16000) <= 1
    middle = slice(2000, 14000)
    np.testing.assert_allclose(wave[middle], sine(1000, 16000, 1.0)[middle], atol=2e-3)


def test_resampling_removes_what_the_new_rate_cannot_hold(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(12000, 44100, 1.0), 44100, subtype="FLOAT")
    assert np.abs(decode(tmp_path / "a.wav", 16000)[2000:14000]).max() < 1e-4


def test_unreadable_files_give_one_line_without_the_path(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"not a sound" * 100)
    (tmp_path / "empty.wav").write_bytes(b"")
    for file in (tmp_path / "a.wav", tmp_path / "empty.wav", tmp_path / "missing.wav", tmp_path):
        for action in (probe, lambda path: decode(path, 16000)):
            with pytest.raises(AudioError) as caught:
                action(file)
            reason = str(caught.value)
            assert reason.startswith("not readable as audio: ")
            assert "\n" not in reason and str(tmp_path) not in reason and reason[-1] != "."


def test_a_file_without_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16000)
    for action in (probe, lambda path: decode(path, 16000)):
        with pytest.raises(AudioError, match=r"^no samples$"):
            action(tmp_path / "a.wav")


def test_non_finite_samples_are_counted(tmp_path):
    wave = sine(440, 44100, 0.5)
    wave[[3, 50]] = np.nan
    wave[100] = -np.inf
    soundfile.write(tmp_path / "a.wav", wave, 44100, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"^not finite: 3 NaN or Inf samples$"):
        decode(tmp_path / "a.wav", 16000)


def test_a_wav_cut_off_gives_what_is_there(tmp_path):
    whole = sine(440, 16000, 1.0)
    soundfile.write(tmp_path / "a.wav", whole, 16000, subtype="PCM_16")
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[: 44 + 2 * 7000])
    wave = decode(tmp_path / "a.wav", 16000)
    np.testing.assert_allclose(wave, whole[:7000], atol=1e-4)


def test_a_flac_cut_off_never_yields_samples_that_were_not_in_it(tmp_path):
    whole = np.random.default_rng(0).uniform(-0.5, 0.5, 48000).astype("f4")
    soundfile.write(tmp_path / "a.flac", whole, 16000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    try:
        wave = decode(tmp_path / "a.flac", 16000)
    except AudioError as error:
        assert str(error).startswith("not readable as audio: ")
    else:
        assert 0 < len(wave) < len(whole)
        np.testing.assert_allclose(wave, whole[: len(wave)], atol=1e-4)


def test_silence_is_below_one_step_of_16_bits():
    assert is_silent(np.zeros(100, "f4"))
    assert is_silent(np.full(100, 9e-6, "f4"))
    one_step = np.zeros(100, "f4")
    one_step[50] = -1 / 32768
    assert not is_silent(one_step)
