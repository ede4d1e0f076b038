"""Frames of audio into decibels a mel band, on one core.

Shapes: `n` samples of a recording, `S` segments, `T` frames, `F` FFT bins, `M` mel bands.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from threading import get_ident
from typing import NamedTuple

import numpy as np

from shards.kernels import add_up, cut, place
from shards.lanes import LANES
from shards.mel import FLOOR, FLOOR_DB, MelSettings, hann

PASS = 160 * 2048  # samples of frames in one pass: fewer are more calls, and more gain nothing
PAGE = 4096  # bytes
#: 10 / ln 10, rounded up: the floor ends a rounding below -100, not above it.
DECIBELS = np.nextafter(np.float32(10 / np.log(10)), np.float32(5))


class Bench(NamedTuple):
    """What one thread works on and with: what `shards.kernels` wants."""

    window: np.ndarray  # (n_fft,)
    frames: np.ndarray  # (T, > n_fft)
    spectrum: np.ndarray  # (T, n_fft // 2), the same memory
    turns: np.ndarray  # (2, 1 + n_fft // 4)
    power: np.ndarray  # (F + 3, LANES)
    weights: np.ndarray
    bins: np.ndarray
    ends: np.ndarray
    mel: np.ndarray  # (M * T,)


def scipy_fft(frames: np.ndarray, out: np.ndarray) -> None:
    """scipy's FFT in float32: at least the half of MKL's speed, on every processor."""
    from scipy.fft import fft

    out[:] = fft(frames)


def complex_fft() -> Callable[..., object]:
    """`fft(frames, out=spectrum)` of complex64: MKL's, where there is one, or scipy's."""
    layer = os.environ.get("MKL_THREADING_LAYER")
    os.environ["MKL_THREADING_LAYER"] = layer or "SEQUENTIAL"  # processes are the parallelism here
    try:
        from mkl_fft import fft

        fft(np.zeros(16, np.complex64))  # as it begins its work it reads the environment
        return fft
    except ImportError:
        return scipy_fft
    finally:
        if layer is None:
            del os.environ["MKL_THREADING_LAYER"]


transform = complex_fft()


@lru_cache(maxsize=8)
def bench(settings: MelSettings, thread: int) -> Bench:
    """The arrays for some settings, made once a thread."""
    n_fft, bins = settings.n_fft, settings.n_fft // 2 + 1
    rows = max(LANES, PASS // n_fft // LANES * LANES)
    # Rows an odd number of lines of the cache apart: not all in the same few places of it.
    frames = pages(np.float32, rows, 16 * (-(-n_fft // 16) | 1))
    turns = -1j * np.exp(-2j * np.pi * np.arange(1 + n_fft // 4) / n_fft)
    return Bench(
        hann(n_fft) / 2,
        frames,
        frames[:, :n_fft].view(np.complex64),
        np.array([turns.real, turns.imag], np.float32),
        pages(np.float32, bins + 3, LANES),
        *by_bins(settings.filterbank),
        pages(np.float32, settings.n_mels * rows),
    )


def pages(dtype: type, *shape: int) -> np.ndarray:
    """Zeros that begin with a page of memory.

    Where arrays lie 64 bytes apart in their pages, going from one to the other takes longer.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + PAGE, np.uint8)
    first = -room.ctypes.data % PAGE
    return room[first : first + size].view(dtype).reshape(shape)


def by_bins(filterbank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles (M, F) as `weights`, `bins` and `ends` of `shards.kernels.add_up`."""
    used, count = filterbank.any(axis=0), len(filterbank)
    highest = count - 1 - (filterbank[::-1] > 0).argmax(axis=0)  # band of each bin
    below = np.concatenate([np.zeros_like(filterbank[:1]), filterbank[:-1]])
    weights, first, ends = [], [], [0]
    for band in range(count):
        some = np.flatnonzero(used & (highest == band))
        pair = np.stack([below[band, some], filterbank[band, some]], axis=1)
        fours = np.pad(pair, ((0, -len(some) % 4), (0, 0))).reshape(-1, 4, 2)
        weights.append(fours.transpose(0, 2, 1).reshape(-1, 8))
        first.append(some[0] if len(some) else 0)
        ends.append(ends[-1] + len(weights[-1]))
    return np.concatenate(weights), np.array(first, np.int64), np.array(ends, np.int64)


def decibels(
    wave: np.ndarray,
    starts: np.ndarray,
    length: int,
    which: range,
    settings: MelSettings,
    mel: np.ndarray,
    taken: range,
    step: int,
) -> None:
    """Frames `which` of each of the segments of `length` samples at `starts`, in dB.

    They are counted through. Segment s of `mel` (S, M, T) gets those from number s * step on as
    its frames `taken`.
    """
    on, each, total = bench(settings, get_ident()), len(which), len(starts) * len(which)
    hop, half = settings.hop_length, settings.n_fft // 2
    passes = -(-total // len(on.frames))
    for n in range(passes):
        number = total * n // passes
        count = total * (n + 1) // passes - number
        frames, spectrum = on.frames[:count], on.spectrum[:count]
        cut(wave, starts, length, hop, which.start, each, number, on.window, frames)
        transform(spectrum, out=spectrum)
        up = -(-count // LANES) * LANES  # the frames beyond `count` are left from another pass
        found = on.mel[: settings.n_mels * up].reshape(-1, up)
        filters = on.weights, on.bins, on.ends
        add_up(on.frames[:up], on.turns, half, on.power, *filters, FLOOR, found)
        np.log(found, out=found)  # several times as fast as log10
        how = taken.start, len(taken), step, DECIBELS, FLOOR_DB
        place(found, count, number, *how, mel)
