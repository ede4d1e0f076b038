"""shards.mel against physics and against librosa."""

import librosa
import numpy as np
import pytest

from shards.errors import UserError
from shards.mel import MelSettings, log_mel

CD_HALF = {"sample_rate": 22050, "fmax": 11025.0}
ODD = {"n_fft": 1023, "hop_length": 257, "n_mels": 40, "fmin": 50.0, "fmax": 7000.0}


def white(n, rows=2):
    return np.random.default_rng(n).normal(0, 0.1, (rows, n)).astype("f4")


def tone(hz, n=16000, rate=16000, level=0.1):
    return (level * np.sin(2 * np.pi * hz * np.arange(n) / rate)).astype("f4")[None]


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
        ({"hop_length": 2048}, 2049, 2),
        ({}, 100, 1),
        ({}, 1, 1),
    ],
)
@pytest.mark.filterwarnings("ignore:n_fft=2048 is too large")
def test_it_is_librosas_mel(settings, n, frames):
    settings, segments = MelSettings(**settings), white(n)
    found = log_mel(segments, settings)
    assert found.dtype == np.float32
    assert found.shape == (2, settings.n_mels, frames)
    assert settings.frames(n) == frames
    np.testing.assert_allclose(found, oracle(segments, settings)[..., :frames], atol=0.01)


@pytest.mark.parametrize("hz", [250, 1000, 3000, 6500])
def test_a_tone_lies_in_the_band_with_the_nearest_centre(hz):
    settings = MelSettings()
    edges = librosa.mel_frequencies(n_mels=settings.n_mels + 2, fmin=0.0, fmax=8000.0)
    band = log_mel(tone(hz), settings)[0, :, 10:20].mean(axis=1).argmax()
    assert band == np.abs(edges[1:-1] - hz).argmin()


def test_twice_the_amplitude_is_6_02_db():
    quiet, loud = (log_mel(white(16000) * level, MelSettings()) for level in (1, 2))
    assert quiet.min() > -80
    step = 20 * np.log10(2)
    assert np.abs(loud - quiet - step).max() < 1e-3
    halves = loud.astype("f2").astype("f4") - quiet.astype("f2").astype("f4")
    assert np.abs(halves - step).max() < 0.04


def test_silence_is_exactly_minus_100_db():
    found = log_mel(np.zeros((1, 16000), "f4"), MelSettings())
    assert (found == -100).all() and (found.astype("f2") == -100).all()


def test_nothing_lies_below_minus_100_db():
    assert log_mel(white(16000) * np.float32(1e-6), MelSettings()).min() >= -100


def test_a_segment_does_not_hear_the_one_before():
    segments = white(20000, rows=3)
    together = log_mel(segments, MelSettings())
    for row in range(3):
        np.testing.assert_array_equal(
            together[row], log_mel(segments[row : row + 1], MelSettings())[0]
        )


def test_no_segments_are_no_spectrograms():
    assert log_mel(np.zeros((0, 16000), "f4"), MelSettings()).shape == (0, 128, 32)


def test_one_wave_without_its_axis_is_refused():
    with pytest.raises(ValueError, match=r"expected \(S, N\)"):
        log_mel(np.zeros(16000, "f4"), MelSettings())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sample_rate": 8000}, "fmax 8000 Hz: above half of sample_rate 8000; give at most 4000"),
        ({"fmin": 8000.0}, "fmin 8000 Hz"),
        ({"fmin": -1.0}, "fmin -1 Hz"),
        ({"fmax": float("nan")}, "fmax nan"),
        ({"n_mels": 0}, "n_mels 0: has to be a whole number"),
        ({"n_fft": 1024.0}, "n_fft 1024.0: has to be a whole number"),
        ({"hop_length": 2049}, "hop_length 2049: longer than n_fft 2048"),
        ({"n_fft": 256, "hop_length": 128}, "n_mels 128 with n_fft 256"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(UserError) as caught:
        MelSettings(**settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_settings_as_a_dictionary_say_everything():
    told = MelSettings(n_mels=64).to_dict()
    assert told["n_mels"] == 64 and told["hop_length"] == 512
    constants = {"window": "hann", "center": True, "pad_mode": "constant", "power": 2.0}
    constants |= {"scale": "slaney", "norm": "slaney", "reference": 1.0, "floor": 1e-10}
    assert constants.items() <= told.items() and told["unit"] == "dB"
