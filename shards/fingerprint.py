"""What tells one recording from all others: the fine grain of its spectrogram.

Level, colour and envelope are taken away, because a class shares them; what is left is as good as
random between two recordings, rain and other noise included, and survives an MP3, a gain and a
shift: the less so, in steady noise, the less the frames overlap (hop_length should be a quarter of
n_fft, as by default). Measured by bench/duplicates.py.

Shapes: `S` segments, `M` mel bands, `T` frames, `G` steps of about 32 ms, `B` bands (at most 32),
`P` pairs, `D` numbers of a vector.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from shards.workers import available

BANDS, STEP = 32, 0.032  # seconds
RANGE = 60.0  # dB below the loudest value that are looked at: a codec drops what is fainter
ENVELOPE = 8  # steps to both sides over which the envelope is taken
LEAST, RMS = 1.0, 3.0  # dB: each band is brought to this RMS, so that a chirp is not all
LIMIT, SCALE = 6.0, 10.0  # dB at which a click is cut off; counts a dB
LOWEST_RMS = 0.5  # dB over the bands of a step; what is smoother, as silence is, has no grain
DIMENSIONS, MODULATION = 512, 10.0  # Hz
LENGTH = 1000.0
SHIFT = 0.5  # seconds, or a quarter of a segment if that is less
PAIRS = 1024  # that a thread compares at once


def grain(values: np.ndarray, frame_seconds: float) -> np.ndarray:
    """(S, M, T) dB, float32, to (S, G, B) int8, tenths of a dB."""
    from shards.loops import flatten, pool

    (count, mels, frames), values = values.shape, np.ascontiguousarray(values)
    bands, span = min(BANDS, mels), min(frames, max(1, round(STEP / frame_seconds)))
    steps = np.empty((count, frames // span, bands), np.float32)
    pool(values, np.arange(bands + 1) * mels // bands, RANGE, steps)
    grains = np.empty(steps.shape, np.int8)
    flatten(steps, ENVELOPE, RMS * SCALE, LEAST, LIMIT * SCALE, grains)
    return grains


def busy_seconds(grains: np.ndarray, seconds: float) -> np.ndarray:
    """(S, G, B) grains of `seconds` to (S,): how much of each segment has any grain."""
    squares = np.einsum("sgb,sgb->sg", grains, grains, dtype=np.float32)  # makes no large copy
    return (np.sqrt(squares / grains.shape[2]) > LOWEST_RMS * SCALE).mean(axis=1) * seconds


def vectors(grains: np.ndarray, seconds: float) -> np.ndarray:
    """(S, G, B) grains of `seconds` to (S, D), alike for copies up to a shift; of length `LENGTH`.

    The magnitudes of the Fourier transform over time, which a shift hardly touches, without the
    means over bands and over frequencies, which related sounds share; projected at random. Whole
    numbers, so that products of two are exact in float32: whatever the threads that add them up.
    Those that project are the caller's: one, for the same numbers everywhere.
    """
    from scipy.fft import next_fast_len, rfft

    n, steps = next_fast_len(grains.shape[1], real=True), grains.shape[1]  # 157 steps are prime
    top = min(steps // 2, round(MODULATION * seconds * n / steps))
    x = np.sqrt(np.abs(rfft(grains.transpose(0, 2, 1).astype(np.float32), n)[..., 1 : top + 1]))
    x -= x.mean(axis=1, keepdims=True)
    x -= x.mean(axis=2, keepdims=True)
    flat = x.reshape(len(x), -1)
    if flat.shape[1] > DIMENSIONS:
        flat = flat @ projection(flat.shape[1])
    return np.rint(flat * (LENGTH / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)))


@lru_cache(maxsize=2)
def projection(size: int) -> np.ndarray:
    """(size, D) float32: keeps angles (Johnson and Lindenstrauss, 1984); always the same."""
    return np.random.default_rng(0).standard_normal((size, DIMENSIONS), np.float32)


def agreement(grains: np.ndarray, a: np.ndarray, b: np.ndarray, seconds: float) -> np.ndarray:
    """(S, G, B) grains and two numbers of each pair, (P,), to (P,): the correlation of the two at
    the shift where it is highest.

    Where the overlap holds less than half of a grain's energy, it is counted as half.
    """
    from shards.loops import agree

    steps, best = grains.shape[1], np.empty(len(a), np.float32)
    most = int(min(SHIFT * steps / seconds, steps / 4))
    parts = [slice(first, first + PAIRS) for first in range(0, len(a), PAIRS)]
    with ThreadPoolExecutor(available()) as pool:
        list(pool.map(lambda k: agree(grains, a[k], b[k], most, best[k]), parts))
    return best
