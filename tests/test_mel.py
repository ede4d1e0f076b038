"""shards.mel against physics, against librosa, and against the definition in float64."""

import sys
from concurrent.futures import ThreadPoolExecutor

import librosa
import numba
import numpy as np
import pytest
import torch
from conftest import build_tones, hashes, read_plainly
from threadpoolctl import threadpool_limits

from shards import frames, kernels
from shards.errors import UserError
from shards.mel import MelSettings, log_mel

CD_HALF = {"sample_rate": 22050, "fmax": 11025.0}
ODD = {"n_fft": 1022, "hop_length": 257, "n_mels": 40, "fmin": 50.0, "fmax": 7000.0}


def white(n, rows=2):
    return np.random.default_rng(n).normal(0, 0.1, (rows, n)).astype("f4")


def tone(hz, n=16000, rate=16000, level=0.1):
    return (level * np.sin(2 * np.pi * hz * np.arange(n) / rate)).astype("f4")[None]


def each(segments, settings, device="cpu"):
    """The segments (S, N) as recordings of their own: (S, M, T)."""
    n, alone = segments.shape[1], np.zeros(1, np.int64)
    return np.stack([log_mel(row, alone, n, settings, device)[0] for row in segments])


def exactly(segments, s):
    """The definition, in float64 throughout: mel power (S, M, T)."""
    pad = s.n_fft // 2
    padded = np.pad(segments.astype("f8"), ((0, 0), (pad, pad + s.n_fft)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, s.n_fft, axis=1)[:, :: s.hop_length]
    window = np.hanning(s.n_fft + 1)[:-1]
    power = np.abs(np.fft.rfft(frames[:, : s.frames(segments.shape[1])] * window)) ** 2
    triangles = librosa.filters.mel(
        sr=s.sample_rate, n_fft=s.n_fft, n_mels=s.n_mels, fmin=s.fmin, fmax=s.fmax, dtype="f8"
    )
    return (power @ triangles.T).swapaxes(1, 2)


def music(n, rate, rows=2):
    """A falling, quiet and loud harmonic sound over a faint noise."""
    time, random = np.arange(n) / rate, np.random.default_rng(n)
    pitch = np.cumsum(300 + 200 * np.cos(3 * time)) / rate
    sound = sum(np.sin(2 * np.pi * k * pitch) / k**2 for k in range(1, 9))
    gain = 10 ** (-2 + 1.5 * np.sin(5 * time))
    return (gain * sound + 1e-5 * random.standard_normal((rows, n))).astype("f4")


def oracle(segments, s):
    power = librosa.feature.melspectrogram(
        y=segments,
        sr=s.sample_rate,
        n_fft=s.n_fft,
        hop_length=s.hop_length,
        n_mels=s.n_mels,
        fmin=s.fmin,
        fmax=s.fmax,
    )
    return 10 * np.log10(np.maximum(power, 1e-10))


@pytest.mark.parametrize(
    ("settings", "n", "frames"),
    [
        ({}, 128000, 250),
        (CD_HALF, 661500, 1292),
        (ODD, 12345, 49),
        ({"n_fft": 512, "hop_length": 160, "n_mels": 64}, 16000, 100),
        ({"n_fft": 6, "hop_length": 4, "n_mels": 1}, 100, 25),
        ({"hop_length": 2048}, 2049, 2),
        ({}, 1, 1),
    ],
)
@pytest.mark.filterwarnings("ignore:n_fft=2048 is too large")
def test_it_is_librosas_mel(settings, n, frames):
    settings, segments = MelSettings(**settings), white(n)
    found = each(segments, settings)
    assert found.dtype == np.float32
    assert found.shape == (2, settings.n_mels, frames)
    assert settings.frames(n) == frames
    np.testing.assert_allclose(found, oracle(segments, settings)[..., :frames], atol=0.01)


@pytest.mark.parametrize("hz", [250, 1000, 3000, 6500])
def test_a_tone_lies_in_the_band_with_the_nearest_centre(hz):
    settings = MelSettings()
    edges = librosa.mel_frequencies(n_mels=settings.n_mels + 2, fmin=0.0, fmax=8000.0)
    band = each(tone(hz), settings)[0, :, 10:20].mean(axis=1).argmax()
    assert band == np.abs(edges[1:-1] - hz).argmin()


def test_twice_the_amplitude_is_6_02_db():
    quiet, loud = (each(white(16000) * level, MelSettings()) for level in (1, 2))
    assert quiet.min() > -80
    step = 20 * np.log10(2)
    assert np.abs(loud - quiet - step).max() < 1e-3
    halves = loud.astype("f2").astype("f4") - quiet.astype("f2").astype("f4")
    assert np.abs(halves - step).max() < 0.04


def test_silence_is_exactly_minus_100_db():
    found = each(np.zeros((1, 16000), "f4"), MelSettings())
    assert (found == -100).all() and (found.astype("f2") == -100).all()


def test_nothing_lies_below_minus_100_db():
    assert each(white(16000) * np.float32(1e-6), MelSettings()).min() >= -100


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "cuda"])  # but "cpu" by shards.mel_device
@pytest.mark.parametrize(("settings", "n"), [({}, 80000), (CD_HALF, 110250), (ODD, 12345)])
def test_down_to_60_db_below_the_loudest_band_it_is_the_definition(settings, n, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    settings = MelSettings(**settings)
    segments = music(n, settings.sample_rate)
    power = exactly(segments, settings)
    counts = power > np.maximum(1e-6 * power.max(axis=1, keepdims=True), 1e-9)
    assert counts.mean() > 0.3
    error = np.abs(each(segments, settings, device) - 10 * np.log10(power))[counts].max()
    assert error < (1e-3 if device == "cpu" else 1e-2)


@pytest.mark.parametrize(
    ("settings", "length", "step"),
    [
        ({}, 16384, 8192),  # half: on the grid of hops
        ({}, 16384, 8000),  # off it
        ({}, 16000, 512),
        ({}, 2048, 1024),  # one frame sees no edge
        ({}, 1500, 512),  # none does
        ({}, 700, 512),
        ({"hop_length": 2048}, 20000, 4096),
        (ODD, 9000, 257 * 9),
        ({}, 16384, 16384),
        ({}, 8000, 9000),
    ],
)
def test_a_segment_does_not_hear_its_neighbours(settings, length, step):
    settings, wave = MelSettings(**settings), white(50000)[0]
    starts = np.arange(300, len(wave) - length + 1, step)
    found = log_mel(wave, starts, length, settings)
    alone = each(np.stack([wave[s : s + length] for s in starts]), settings)
    assert len(starts) > 2 and found.shape == alone.shape and found.dtype == np.float32
    np.testing.assert_array_equal(found, alone)
    found = log_mel(wave, starts, length, settings, "cpu:0")
    np.testing.assert_allclose(found, alone, atol=1e-2)


def test_overlapping_frames_are_transformed_once(monkeypatch):
    counted, fft = [], frames.transform
    monkeypatch.setattr(
        frames, "transform", lambda x, out: counted.append(len(x)) or fft(x, out=out)
    )
    log_mel(white(128000 + 9 * 64000)[0], np.arange(10) * 64000, 128000, MelSettings())
    assert 250 < sum(counted) <= 250 + 9 * 125 + 10 * 3  # not 2500; 3 of a segment see its edges


def test_the_bits_depend_neither_on_threads_nor_on_the_place_in_memory():
    wave, starts = white(160000)[0], np.arange(3) * 40960
    expected = log_mel(wave, starts, 78000, MelSettings())
    for shift in range(1, 5):
        moved = np.concatenate([np.zeros(shift, "f4"), wave])[shift:]
        with threadpool_limits(shift), ThreadPoolExecutor(2) as pool:
            both = pool.map(lambda x: log_mel(x, starts, 78000, MelSettings()), [moved, -moved])
        for found in both:
            np.testing.assert_array_equal(found, expected)


def test_the_bits_of_a_frame_do_not_depend_on_its_neighbours():
    wave, hop = white(40000)[0], 512
    whole = log_mel(wave, np.zeros(1, int), 40000, MelSettings())[0]
    for last in (5, 6, 7, 8, 33):
        cut = log_mel(wave[: last * hop], np.zeros(1, int), last * hop, MelSettings())[0]
        np.testing.assert_array_equal(cut[:, : last - 2], whole[:, : last - 2])


def test_without_mkl_it_is_the_same_to_rounding(monkeypatch):
    wave, starts = white(30000)[0], np.arange(2) * 10000
    expected = log_mel(wave, starts, 20000, MelSettings())
    monkeypatch.setitem(sys.modules, "mkl_fft", None)
    assert frames.complex_fft() is frames.scipy_fft
    monkeypatch.setattr(frames, "transform", frames.scipy_fft)
    np.testing.assert_allclose(log_mel(wave, starts, 20000, MelSettings()), expected, atol=1e-3)


def test_it_does_without_a_folder_for_compiled_code(monkeypatch):
    def refuse(*args, cache=False, **words):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(*args, **words)

    monkeypatch.setattr(kernels, "njit", refuse)
    twice = kernels.compiled("void(f4[::1])")(double)
    twice(given := np.ones(3, np.float32))
    assert given.tolist() == [2, 2, 2]


def double(values):
    for n in range(len(values)):
        values[n] *= 2


def test_no_segments_are_no_spectrograms():
    assert log_mel(white(16000)[0], np.arange(0), 16000, MelSettings()).shape == (0, 128, 32)


def test_what_is_not_a_wave_or_too_short_is_refused():
    with pytest.raises(ValueError, match=r"expected \(n,\)"):
        log_mel(white(16000), np.arange(1), 16000, MelSettings())
    with pytest.raises(ValueError, match="ends behind 16000 samples"):
        log_mel(white(16000)[0], np.arange(2), 16000, MelSettings())


def test_a_set_built_on_a_device_says_so(small, tmp_path):
    for name, workers, device in (("a", 1, "cpu"), ("b", 1, "cpu:0"), ("c", 2, "cpu:0")):
        build_tones(small, tmp_path / name, folds=2, overlap=0.5, workers=workers, device=device)
    assert hashes(tmp_path / "b") == hashes(tmp_path / "c")
    for a, b in zip(read_plainly(tmp_path / "a"), read_plainly(tmp_path / "b"), strict=True):
        np.testing.assert_allclose(a["npy"], b["npy"], atol=0.05)
    with pytest.raises(UserError, match="device: cpu there, cpu:0 asked"):
        build_tones(small, tmp_path / "a", folds=2, overlap=0.5, device="cpu:0")


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "meta"])
def test_a_device_that_is_not_there_is_refused(small, tmp_path, device):
    with pytest.raises(UserError, match=f"--device={device}: cannot be used here") as caught:
        build_tones(small, tmp_path / "set", folds=2, device=device)
    assert "\n" not in str(caught.value) and not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sample_rate": 8000}, "fmax 8000 Hz: above half of sample_rate 8000; give at most 4000"),
        ({"fmin": 8000.0}, "fmin 8000 Hz"),
        ({"fmin": -1.0}, "fmin -1 Hz"),
        ({"fmax": float("nan")}, "fmax nan"),
        ({"n_mels": 0}, "n_mels 0: has to be a whole number"),
        ({"n_fft": 1024.0}, "n_fft 1024.0: has to be a whole number"),
        ({"n_fft": 1023}, "n_fft 1023: has to be even"),
        ({"hop_length": 2049}, "hop_length 2049: longer than n_fft 2048"),
        ({"n_fft": 256, "hop_length": 128}, "n_mels 128 with n_fft 256"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(UserError) as caught:
        MelSettings(**settings)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_settings_as_a_dictionary_say_everything():
    told = MelSettings(n_mels=64).to_dict()
    assert told["n_mels"] == 64 and told["hop_length"] == 512
    constants = {"window": "hann", "center": True, "pad_mode": "constant", "power": 2.0}
    constants |= {"scale": "slaney", "norm": "slaney", "reference": 1.0, "floor": 1e-10}
    assert constants.items() <= told.items() and told["unit"] == "dB"


def test_halves_are_numpys() -> None:
    random = np.random.default_rng(0)
    values = (100 * random.standard_normal((2, 3, 999))).astype("f4")
    values[0, 0] = np.linspace(-100, -99, 999)
    values[0, 1] = np.geomspace(2**-14, 65504, 999)
    values[1, 1, :2] = 1 + 2**-11, 1 + 3 * 2**-11  # half way: to even
    expected, stored, rounded = values.astype("f2"), np.empty(values.shape, "f2"), values.copy()
    kernels.halve(rounded.view(np.int32), stored.view(np.uint16))
    assert (stored == expected).all() and (rounded == expected.astype("f4")).all()
    tiny = np.float32([[[2**-15, -1e-9, 0.0]]])
    kernels.halve(tiny.view(np.int32), stored[:1, :1, :3].copy().view(np.uint16))
    assert not tiny.any()
