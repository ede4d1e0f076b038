"""Made-up speech by source and filter (Fant, 1960): pulses and noise through moving formants.

`n` samples at RATE, `H` control points (every HOP samples), `F` frequencies.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.sources.sounds import decibels, log_uniform, pulses, shaped, unit, wander

RATE = 16000
FFT, HOP = 512, 128
VOWELS = np.array(  # Hz, after Peterson and Barney, 1952: i, e, a, o, u, @
    [(270, 2290, 3010), (530, 1840, 2480), (730, 1090, 2440), (570, 840, 2410), (300, 870, 2240),
     (490, 1350, 1690)],
)  # fmt: skip
WIDTHS = np.array((80.0, 110.0, 160.0, 220.0))  # of the formants, Hz
HUSHED = 0.01


@dataclass(frozen=True)
class Speaker:
    """A voice."""

    pitch: float  # Hz
    tract: float  # all formants, times this
    breath: float  # noise beside the pulses
    jitter: float  # relative, from pulse to pulse
    tilt: float  # of the pulses, dB an octave
    tempo: float  # syllables a second


def speaker(rng: np.random.Generator) -> Speaker:
    """Somebody."""
    pitch = log_uniform(rng, 90, 240)
    tract = 0.92 + 0.16 * np.log2(pitch / 90) / 1.4 + rng.uniform(-0.06, 0.06)
    breath, jitter = log_uniform(rng, 0.01, 0.08), rng.uniform(0.004, 0.015)
    return Speaker(pitch, tract, breath, jitter, rng.uniform(-9, -6), rng.uniform(3.2, 5.5))


def speech(rng: np.random.Generator, voice: Speaker, n: int) -> np.ndarray:
    """(n,) syllables, most of a consonant and a vowel, in phrases with pauses between."""
    begin = round(rng.uniform(0, 2) * RATE)  # in the midst of it
    size = begin + n + RATE
    track = articulation(rng, voice, size)
    glide = 0.25 * wander(rng, size, 0.8, RATE) + 0.12 * wander(rng, size, voice.tempo, RATE)
    source = glottis(rng, voice, voice.pitch * 2**glide)
    hiss = rng.standard_normal(size)
    breathy = voice.breath * hiss * (0.4 + 0.6 * np.abs(source) / np.abs(source).max())
    voiced = filtered(source + breathy, track.throat * track.voicing[:, None])
    noisy = filtered(hiss, track.friction)
    spoken: np.ndarray = unit(voiced) + 0.25 * unit(noisy)
    return spoken[begin : begin + n]


@dataclass(frozen=True)
class Track:
    """What the mouth does: gains at the control points."""

    throat: np.ndarray  # (H, F)
    voicing: np.ndarray  # (H,)
    friction: np.ndarray  # (H, F)


def articulation(rng: np.random.Generator, voice: Speaker, n: int) -> Track:
    """Syllables that begin at random moments, and the gains that they mean."""
    count = int(n / RATE * voice.tempo * 1.5) + 4
    lengths = rng.uniform(0.7, 1.4, count) / voice.tempo
    phrase = rng.uniform(size=count) < 0.14
    starts = np.cumsum(lengths + phrase * rng.uniform(0.15, 0.45, count)) - lengths[0]
    onset = starts + rng.uniform(0.15, 0.35, count) * lengths
    ends = starts + lengths
    times = np.arange(n // HOP + 1) * HOP / RATE
    targets = voice.tract * VOWELS[rng.integers(0, len(VOWELS), count)]
    targets = targets * rng.uniform(0.94, 1.06, targets.shape)
    formants = np.stack(
        [
            np.interp(times, np.stack([onset, ends], 1).ravel(), np.repeat(row, 2))
            for row in (*targets.T, np.full(count, 3600 * voice.tract))
        ],
        axis=1,
    )
    loudness = 10 ** (rng.uniform(-8, 0, count) / 20)
    voicing = steps(times, onset - 0.02, ends - 0.03, loudness)
    centres = log_uniform(rng, 0.85, 1.15) * rng.choice((1800, 2800, 4200, 5600, 6500), count)
    strength = rng.choice((0.0, 0.4, 1.0), count) * loudness
    friction = consonants(times, starts, onset, centres, strength)
    return Track(formant_gains(formants), voicing, friction)


def steps(
    times: np.ndarray, starts: np.ndarray, ends: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """(H,) `heights` from starts to ends, hushed between, with slopes of 30 ms."""
    corners = np.stack([starts, starts + 0.03, ends, ends + 0.03], axis=1).ravel()
    values = np.stack([0 * heights, heights, heights, 0 * heights], axis=1).ravel()
    return np.interp(times, np.maximum.accumulate(corners), HUSHED + values)


def formant_gains(formants: np.ndarray) -> np.ndarray:
    """(H, 4) centres in Hz -> (H, F): resonances that fall off by 6 dB an octave."""
    distance = (frequencies()[:, None] - formants[:, None, :]) / (WIDTHS / 2)
    return (np.array((1, 0.6, 0.35, 0.2)) / np.sqrt(1 + distance**2)).sum(axis=2)


def consonants(
    times: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    centres: np.ndarray,
    strength: np.ndarray,
) -> np.ndarray:
    """(H, F) of noise around a centre in Hz, at each syllable's beginning."""
    now = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, len(starts) - 1)
    level = steps(times, starts - 0.01, ends - 0.04, strength)
    octaves = np.log2(np.maximum(frequencies(), 50) / centres[now][:, None])
    return level[:, None] / (1 + (octaves / 0.4) ** 2)


def glottis(rng: np.random.Generator, voice: Speaker, pitch: np.ndarray) -> np.ndarray:
    """(n,) pulses at (n,) `pitch` in Hz, uneven, falling off as the voice does."""
    fine = np.repeat(pitch, 3)  # placed at 48 kHz, a fiftieth of a millisecond
    drift = np.repeat(rng.standard_normal(len(fine) // 200 + 1), 200)[: len(fine)]
    struck = pulses(fine * (1 + voice.jitter * drift))
    loud = 1 + 0.08 * rng.standard_normal(len(fine))
    soft = shaped(struck * loud, lambda f: decibels(voice.tilt, f) * (f < 7900))
    return soft[::3]


def frequencies() -> np.ndarray:
    """(F,) Hz."""
    return np.fft.rfftfreq(FFT, 1 / RATE)


def spectrum(wave: np.ndarray) -> np.ndarray:
    """(n,) -> (H, F) complex."""
    from scipy.signal import stft

    found: Any = stft(wave, nperseg=FFT, noverlap=FFT - HOP, boundary="even", padded=True)[2]
    return np.asarray(found.T)


def waveform(frames: np.ndarray, n: int) -> np.ndarray:
    """The inverse of `spectrum`, (n,)."""
    from scipy.signal import istft

    found: Any = istft(frames.T, nperseg=FFT, noverlap=FFT - HOP)[1]
    return np.asarray(found[:n]) if len(found) >= n else np.pad(found, (0, n - len(found)))


def filtered(wave: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """(n,) through (H, F) gains that change with time."""
    frames = spectrum(wave)
    return waveform(frames * gains[np.minimum(np.arange(len(frames)), len(gains) - 1)], len(wave))
