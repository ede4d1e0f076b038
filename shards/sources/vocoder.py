"""What vocoders do to speech: four kinds of damage, and attacks that do more or less of each.

`n` samples at 16 kHz. A damage is (generator, (n,) wave, how much) -> (n,).
"""

from dataclasses import dataclass

import numpy as np

from shards.sources.sounds import shaped
from shards.sources.speech import RATE, spectrum, waveform
from shards.sources.takes import Span

ITERATIONS = 4


@dataclass(frozen=True)
class Vocoder:
    """The least and the most of each damage; none where it is not said."""

    smooth: Span  #: share of the envelope's detail that is lost
    phase: Span  #: half turns by which phases are off at most
    edge: Span | None = None  #: Hz
    image: Span | None = None  #: outer weight of the filter that takes 8 kHz to 16


def vocoded(rng: np.random.Generator, wave: np.ndarray, by: Vocoder) -> np.ndarray:
    """(n,) `wave` analysed and made again, each damage drawn anew."""
    wave = phase(rng, smooth(rng, wave, rng.uniform(*by.smooth)), rng.uniform(*by.phase))
    if by.edge:
        wave = band(rng, wave, rng.uniform(*by.edge))
    return imaging(rng, wave, rng.uniform(*by.image)) if by.image else wave


def smooth(rng: np.random.Generator, wave: np.ndarray, share: float) -> np.ndarray:
    """The spectral envelope over-smoothed: broad formants that move slowly, as averages do."""
    from scipy.ndimage import gaussian_filter

    frames = spectrum(wave)
    levels = np.log(np.abs(frames) + 1e-6 * np.abs(frames).max())
    width = rng.uniform(5, 9)  # bins: 160 to 280 Hz, three times a formant
    envelope = gaussian_filter(levels, (1, 2), mode="nearest")
    flat = gaussian_filter(levels, (rng.uniform(5, 9), width), mode="nearest")
    return waveform(frames * np.exp(share * (flat - envelope)), len(wave))


def phase(rng: np.random.Generator, wave: np.ndarray, half_turns: float) -> np.ndarray:
    """Phases lost, all of them at 1, and guessed again (Griffin and Lim, IEEE TASSP 1984)."""
    frames = spectrum(wave)
    magnitudes = np.abs(frames)
    angles = np.angle(frames) + half_turns * rng.uniform(-np.pi, np.pi, frames.shape)
    for _ in range(ITERATIONS):
        angles = np.angle(spectrum(waveform(magnitudes * np.exp(1j * angles), len(wave))))
    return waveform(magnitudes * np.exp(1j * angles), len(wave))


def band(rng: np.random.Generator, wave: np.ndarray, edge: float) -> np.ndarray:
    """Nothing above `edge` Hz, by a steep filter."""
    return shaped(wave, lambda f: 1 / np.sqrt(1 + (f / edge) ** 40), RATE)


def imaging(rng: np.random.Generator, wave: np.ndarray, side: float) -> np.ndarray:
    """Made at 8 kHz and brought to 16 by a weak filter: what is below 4 kHz is mirrored above.

    `side` is that filter's outer weight, its middle one being 1: 0.5 would draw straight lines.
    """
    low = shaped(wave, lambda f: 1 / np.sqrt(1 + (f / 3700) ** 60), RATE)
    held = np.zeros_like(low)
    held[::2] = 2 / (1 + 2 * side) * low[::2]
    return np.convolve(held, (side, 1, side), mode="same")


LITTLE: Span = (0.25, 0.5)
#: Each does most of what it is called after, and a little of what all vocoders do.
ATTACKS = {
    "phase": Vocoder(smooth=LITTLE, phase=(0.6, 1.0)),
    "band": Vocoder(smooth=LITTLE, phase=LITTLE, edge=(4500, 7000)),
    "smooth": Vocoder(smooth=(0.5, 0.8), phase=LITTLE),
    "imaging": Vocoder(smooth=LITTLE, phase=LITTLE, image=(0.3, 0.45)),
}
UNSEEN = "imaging"  #: in no training
