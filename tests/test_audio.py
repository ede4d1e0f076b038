"""shards.audio against files made here and against arithmetic."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from media import encode, riff

from shards.audio import AudioError, Levels, as_floats, decode, is_silent, probe
from shards.container import source


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


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000, 192000])
@pytest.mark.parametrize("channels", [1, 3])
def test_blocks_give_what_soxr_gives_at_once(tmp_path, rate, channels):
    n = 200_000  # three blocks and a bit
    frames = np.random.default_rng(rate).uniform(-0.5, 0.5, (n, channels)).astype("f4")
    soundfile.write(tmp_path / "a.wav", frames, rate, subtype="FLOAT")
    levels = Levels()
    wave = decode(tmp_path / "a.wav", 16000, levels=levels)
    expected = soxr.resample(frames.mean(axis=1), rate, 16000, quality="HQ")
    np.testing.assert_allclose(wave, expected, atol=1e-7)
    assert levels.seconds == n / rate and levels.peak == np.abs(frames).max()


def test_a_piece_is_cut_out_to_the_sample(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 200_000).astype("f4")
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    encode(tmp_path / "a.mkv", "pcm_f32le", wave=wave[:, None], rate=16000)
    for name in ("a.wav", "a.mkv"):
        for start, end in ((0.0, 1.5), (4.0, 9.0), (5.25, None), (12.0, 99.0)):
            piece = wave[round(16000 * start) : None if end is None else round(16000 * end)]
            np.testing.assert_allclose(decode(tmp_path / name, 16000, start, end), piece, atol=1e-6)
        with pytest.raises(AudioError, match=r"^no samples$"):
            decode(tmp_path / name, 16000, 20.0)


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("a.m4a", "aac", "ipod"),
        ("a.m4a", "alac", "ipod"),
        ("a.aac", "aac", "adts"),
        ("a.opus", "libopus", "ogg"),
        ("a.webm", "libopus", "webm"),
        ("a.wma", "wmav2", "asf"),
        ("a.mp4", "aac", "mp4"),
        ("a.mov", "pcm_s24le", "mov"),
        ("a.mkv", "flac", "matroska"),
    ],
)
def test_ffmpeg_reads_the_others(tmp_path, name, codec, form):
    video = form in ("mp4", "mov", "matroska")
    stereo = np.stack([sine(440, 48000, 2.0), sine(440, 48000, 2.0)], axis=1)
    encode(tmp_path / name, codec, form=form, video=video, wave=stereo)
    found = probe(tmp_path / name)
    assert (found.sample_rate, found.channels) == (48000, 2)
    wave = decode(tmp_path / name, 16000)
    assert found.seconds == pytest.approx(2.0, abs=0.1)
    assert len(wave) / 16000 == pytest.approx(2.0, abs=0.1)
    middle = wave[8000:24000] * np.hanning(16000)
    assert np.abs(np.fft.rfft(middle)).argmax() == 440
    assert np.sqrt(np.mean(wave[8000:24000] ** 2)) == pytest.approx(0.5 / 2**0.5, rel=0.03)


def test_a_stream_that_does_not_say_its_length_is_counted(tmp_path):
    encode(tmp_path / "a.webm", "libopus", form="webm", wave=sine(440, 48000, 2.0)[:, None])
    data = (tmp_path / "a.webm").read_bytes()
    duration = data.index(b"\x44\x89\x88")  # the element Duration, of 8 bytes
    void = b"\xec\x89" + data[duration + 2 : duration + 11]
    (tmp_path / "a.webm").write_bytes(data[:duration] + void + data[duration + 11 :])
    assert probe(tmp_path / "a.webm").seconds == pytest.approx(2.0, abs=0.05)


PEAK = """
import resource, sys
import librosa.filters, scipy.fft, soundfile, soxr
from shards.audio import decode
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
wave = decode(sys.argv[1], 16000)
print(len(wave), wave.nbytes, 1024 * (peak() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kB")
def test_a_file_is_not_held_whole(tmp_path):
    seconds = 40  # of 192 kHz and 8 channels: 123 MB in the file, 246 MB as float32
    size = seconds * 192_000 * 8 * 2
    with open(tmp_path / "a.wav", "wb") as out:
        out.write(riff(b"", rate=192_000, channels=8, claimed=size))
        out.truncate(out.tell() + size)  # sparse
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", PEAK, str(tmp_path / "a.wav")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    samples, held, grown = map(int, done.stdout.split())
    assert samples == seconds * 16000
    assert grown < held + 40e6


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_16_bits_are_libsndfiles_floats(tmp_path, suffix):
    wave = np.random.default_rng(0).uniform(-1, 1, (100_000, 3))
    soundfile.write(tmp_path / f"a.{suffix}", wave, 16000, subtype="PCM_16")
    expected, _ = soundfile.read(tmp_path / f"a.{suffix}", dtype="float32")
    with source(tmp_path / f"a.{suffix}") as file:
        found, *_ = as_floats(np.concatenate(list(file.blocks(7, None))))
    assert found.dtype == np.float32 and (found == expected[7:]).all()
