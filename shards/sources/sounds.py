"""Six kinds of sound from a random generator, and what they are made of.

Shapes: `n` samples at RATE, or at the `rate` in Hz that is said. A sound is (generator, n) -> (n,)
float64 at any level; its ranges overlap with the others', so that no single number tells it.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

RATE = 48000

Response: TypeAlias = Callable[[np.ndarray], np.ndarray]


def chirp(rng: np.random.Generator, n: int) -> np.ndarray:
    """Sweeps over one to three octaves, all up or all down, one after the other."""
    sweeps = np.arange(n) / RATE / rng.uniform(0.5, 1.6) + rng.uniform()
    low, octaves = log_uniform(rng, 200, 800), rng.uniform(1.2, 3.2)
    place = sweeps % 1 if rng.uniform() < 0.5 else 1 - sweeps % 1
    fade = np.clip(8 * np.minimum(sweeps % 1, 1 - sweeps % 1), 0, 1)
    return fade * tone(low * 2 ** (octaves * place), rng.uniform(0, 0.4))


def siren(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two tones, a second to a fifth apart, in turns of 0.25 to 0.8 s."""
    low, ratio = log_uniform(rng, 500, 1800), rng.uniform(1.15, 1.6)
    swing = np.sin(2 * np.pi * (np.arange(n) / RATE / rng.uniform(0.5, 1.6) + rng.uniform()))
    high = 0.5 + 0.5 * np.tanh(rng.uniform(4, 12) * swing)
    return tone(low * ratio**high, rng.uniform(0, 0.4))


def engine(rng: np.random.Generator, n: int) -> np.ndarray:
    """Firing pulses at a wandering 30 to 120 Hz, uneven from stroke to stroke, through a box."""
    f0 = log_uniform(rng, 30, 120) * 2 ** (rng.uniform(0.05, 0.35) * wander(rng, n, 0.7))
    uneven = 1 + 0.5 * rng.uniform(-1, 1, n)
    beat = 1 + rng.uniform(0.1, 0.6) * np.sin(2 * np.pi * rng.uniform(2, 9) * seconds(n))
    box = resonances(rng.uniform(120, 2500, 3), rng.uniform(150, 600, 3), rng.uniform(0.2, 1, 3))
    return shaped(beat * uneven * pulses(f0), box)


def vowel(rng: np.random.Generator, n: int) -> np.ndarray:
    """Glottal pulses at 90 to 280 Hz with vibrato, through four formants, in syllables."""
    vibrato = np.sin(2 * np.pi * rng.uniform(4, 7) * seconds(n))
    glide = rng.uniform(0.05, 0.25) * wander(rng, n, 1.5)
    f0 = log_uniform(rng, 90, 280) * 2 ** (rng.uniform(0.01, 0.06) * vibrato + glide)
    formants = [
        rng.uniform(*span) for span in ((280, 850), (850, 2300), (2300, 3000), (3200, 3900))
    ]
    throat = resonances(np.array(formants), rng.uniform(60, 180, 4), np.array([1, 0.6, 0.3, 0.15]))
    syllables = 0.3 + 0.7 * np.clip(0.6 + wander(rng, n, 3.0), 0, 1)
    return shaped(syllables * pulses(f0), throat)


def clicks(rng: np.random.Generator, n: int) -> np.ndarray:
    """Impulses at irregular moments, 3 to 20 a second, each a decaying resonance."""
    from scipy.signal import fftconvolve

    moments = rng.integers(0, n, max(3, round(n / RATE * log_uniform(rng, 3, 20))))
    impulses = np.zeros(n)
    impulses[moments] = rng.uniform(0.3, 1, len(moments)) * rng.choice((-1, 1), len(moments))
    t = seconds(RATE // 5)
    ring = np.sin(2 * np.pi * log_uniform(rng, 400, 5000) * t) + rng.normal(0, 0.5, len(t))
    return fftconvolve(impulses, ring * np.exp(-t / log_uniform(rng, 0.002, 0.03)))[:n]


def noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """White noise through one band of random centre and width, tilted, its level drifting."""
    centre, octaves = log_uniform(rng, 250, 4000), rng.uniform(0.3, 2)
    slope = rng.uniform(-6, 3)
    drift = 1 + rng.uniform(0, 0.6) * wander(rng, n, 2.0)

    def band(f: np.ndarray) -> np.ndarray:
        distance = np.log2(np.maximum(f, 1) / centre) / (octaves / 2)
        return decibels(slope, f) / (1 + distance**4)

    return drift * shaped(rng.standard_normal(n), band)


SOUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "chirp": chirp,
    "engine": engine,
    "clicks": clicks,
    "noise": noise,
    "vowel": vowel,
    "siren": siren,
}


def seconds(n: int, rate: int = RATE) -> np.ndarray:
    """The time of each of `n` samples."""
    return np.arange(n) / rate


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between `low` and `high`, every octave as likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def wander(rng: np.random.Generator, n: int, per_second: float, rate: int = RATE) -> np.ndarray:
    """(n,) between -1 and 1: straight lines between random points, so many a second."""
    points = rng.uniform(-1, 1, int(n / rate * per_second) + 3)
    return np.interp(seconds(n, rate) * per_second, np.arange(len(points)), points)


def tone(frequency: np.ndarray, overtone: float, rate: int = RATE) -> np.ndarray:
    """A sine of (n,) `frequency` in Hz and its octave."""
    phase = 2 * np.pi * np.cumsum(frequency) / rate
    return np.sin(phase) + overtone * np.sin(2 * phase)


def pulses(frequency: np.ndarray) -> np.ndarray:
    """(n,) ones where a period of `frequency` ends, zeros elsewhere."""
    return np.diff(np.floor(np.cumsum(frequency) / RATE), prepend=0.0)


def resonances(centres: np.ndarray, widths: np.ndarray, gains: np.ndarray) -> Response:
    """The sum of resonances at `centres`, `widths` wide (Hz), falling 6 dB an octave away."""

    def response(f: np.ndarray) -> np.ndarray:
        distance = (f[:, None] - centres) / (widths / 2)
        return (gains / np.sqrt(1 + distance**2)).sum(axis=1)

    return response


def decibels(per_octave: float, f: np.ndarray) -> np.ndarray:
    """The gain at `f` Hz of a straight tilt around 1 kHz, level below 60 Hz."""
    return 10 ** (per_octave * np.log2(np.maximum(f, 60) / 1000) / 20)


def shaped(wave: np.ndarray, response: Response, rate: int = RATE) -> np.ndarray:
    """(n,) `wave` through a filter given as its gain at frequencies in Hz, without phase shift."""
    from scipy.fft import irfft, next_fast_len, rfft

    size = next_fast_len(len(wave), real=True)
    return irfft(rfft(wave, size) * response(np.fft.rfftfreq(size, 1 / rate)), size)[: len(wave)]


def unit(wave: np.ndarray) -> np.ndarray:
    """`wave` at a mean power of 1."""
    return wave / np.sqrt(np.mean(wave**2))
