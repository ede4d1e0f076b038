"""What vocoders and codecs do to speech, each (rng, (n,) wave at 16 kHz) -> (n,)."""

from collections.abc import Callable

import numpy as np

from shards.sources.sounds import shaped
from shards.sources.speech import RATE, spectrum, waveform

ITERATIONS = 6


def phase(rng: np.random.Generator, wave: np.ndarray) -> np.ndarray:
    """Phases lost, and guessed again (Griffin and Lim, IEEE TASSP 1984)."""
    magnitudes = np.abs(spectrum(wave))
    angles = rng.uniform(0, 2 * np.pi, magnitudes.shape)
    for _ in range(ITERATIONS):
        angles = np.angle(spectrum(waveform(magnitudes * np.exp(1j * angles), len(wave))))
    return waveform(magnitudes * np.exp(1j * angles), len(wave))


def band(rng: np.random.Generator, wave: np.ndarray) -> np.ndarray:
    """Nothing above 4.2 to 5.8 kHz, by a steep filter."""
    edge = rng.uniform(4200, 5800)
    return shaped(wave, lambda f: 1 / np.sqrt(1 + (f / edge) ** 40), RATE)


def smooth(rng: np.random.Generator, wave: np.ndarray) -> np.ndarray:
    """The spectral envelope over-smoothed: broad formants that move slowly, as averages do."""
    from scipy.ndimage import gaussian_filter

    frames = spectrum(wave)
    levels = np.log(np.abs(frames) + 1e-6 * np.abs(frames).max())
    width = rng.uniform(5, 9)  # bins: 160 to 280 Hz, three times a formant
    envelope = gaussian_filter(levels, (1, 2), mode="nearest")
    flat = gaussian_filter(levels, (rng.uniform(5, 9), width), mode="nearest")
    return waveform(frames * np.exp(0.8 * (flat - envelope)), len(wave))


def imaging(rng: np.random.Generator, wave: np.ndarray) -> np.ndarray:
    """Made at 8 kHz and brought to 16 by a weak filter: what is below 4 kHz is mirrored above."""
    low = shaped(wave, lambda f: 1 / np.sqrt(1 + (f / 3700) ** 60), RATE)
    side = rng.uniform(0.3, 0.45)  # 0.5 would draw straight lines
    held = np.zeros_like(low)
    held[::2] = 2 / (1 + 2 * side) * low[::2]
    return np.convolve(held, (side, 1, side), mode="same")


ATTACKS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "phase": phase,
    "band": band,
    "smooth": smooth,
    "imaging": imaging,
}
UNSEEN = "imaging"  #: in no training
