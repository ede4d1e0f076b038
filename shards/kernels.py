"""The inner loops of log-mel, compiled by numba as this is imported; kept on disk from then on.

Four frames are transposed at a time, so that what follows works on many frames in one vector: a
frame's bits then do not depend on its neighbours. Shapes: `T` frames, a multiple of 4, `F` FFT
bins, `M` mel bands.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit


def compiled(signature: str) -> Callable[[Callable[..., None]], Any]:
    """`njit` for one signature; of `fastmath` no more than fused multiply-adds."""
    words: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}

    def compiler(function: Callable[..., None]) -> Any:
        try:
            return njit(signature, cache=True, **words)(function)
        except RuntimeError:  # no folder to keep it in: neither beside this file nor in the home
            return njit(signature, **words)(function)

    return compiler


@compiled("void(f4[::1], i8[::1], i8, i8, i8, i8, i8, f4[::1], f4[:, ::1])")
def cut(
    wave: np.ndarray,
    starts: np.ndarray,
    length: int,
    hop: int,
    first: int,
    each: int,
    number: int,
    window: np.ndarray,
    frames: np.ndarray,
) -> None:
    """Fill (T, n_fft) with windowed frames, zeros where they reach out of their segment.

    Segments of `length` begin at `starts`; of each, `each` centred frames are wanted, from its
    frame `first` on. Those are counted through, and `number` is the first to be cut.
    """
    n_fft = len(window)
    for row in range(len(frames)):
        segment = starts[(number + row) // each]
        begin = (first + (number + row) % each) * hop - n_fft // 2
        low, high = max(0, -begin), min(n_fft, length - begin)
        frames[row, :low] = 0
        frames[row, high:] = 0
        inside, weight = wave[segment + begin + low : segment + begin + high], window[low:high]
        out = frames[row, low:high]
        for n in range(len(out)):
            out[n] = inside[n] * weight[n]


@compiled("void(f4[:, ::1], f4[:, ::1])")
def power_by_fours(spectrum: np.ndarray, fours: np.ndarray) -> None:
    """re^2 + im^2 of (T, 2 F) into (T / 4, 4 F): four frames bin by bin."""
    for four in range(len(fours)):
        a, b = spectrum[4 * four], spectrum[4 * four + 1]
        c, d = spectrum[4 * four + 2], spectrum[4 * four + 3]
        out = fours[four]
        for n in range(len(out) // 4):
            re, im = 2 * n, 2 * n + 1
            out[4 * n] = a[re] * a[re] + a[im] * a[im]
            out[4 * n + 1] = b[re] * b[re] + b[im] * b[im]
            out[4 * n + 2] = c[re] * c[re] + c[im] * c[im]
            out[4 * n + 3] = d[re] * d[re] + d[im] * d[im]


@compiled("void(c16[:, ::1], c16[:, ::1])")
def transpose_fours(fours: np.ndarray, columns: np.ndarray) -> None:
    """(T / 4, F) into (F, at least T / 4), where four float32 pass for one complex number."""
    for n in range(fours.shape[1]):
        for four in range(len(fours)):
            columns[n, four] = fours[four, n]


@compiled("void(f4[:, ::1], f4[:, ::1], i8[::1], i8[::1], f4[:, ::1], f4, f4[:, :])")
def add_up(
    power: np.ndarray,
    weights: np.ndarray,
    bins: np.ndarray,
    ends: np.ndarray,
    bands: np.ndarray,
    floor: float,
    mel: np.ndarray,
) -> None:
    """The bands `mel` (M, T), at least `floor`, of the power (F, >= T); `bands` (1 + M, >= T).

    A bin lies in two bands at most, on the falling side of one and the rising side of the next.
    Step `m` takes the bins from `bins[m]` on, by four, with the rows of `weights` from `ends[m]`
    to `ends[m + 1]`, into rows m (falling) and m + 1 (rising) of `bands`.
    """
    count = mel.shape[1]
    bands[0] = 0
    for m in range(len(bins)):
        fall, rise, k = bands[m], bands[m + 1], bins[m]
        rise[:] = 0
        for n in range(ends[m], ends[m + 1], 4):
            v0, v1, v2, v3 = weights[n, 0], weights[n + 1, 0], weights[n + 2, 0], weights[n + 3, 0]
            w0, w1, w2, w3 = weights[n, 1], weights[n + 1, 1], weights[n + 2, 1], weights[n + 3, 1]
            for t in range(count):
                p0, p1, p2, p3 = power[k, t], power[k + 1, t], power[k + 2, t], power[k + 3, t]
                fall[t] += (v0 * p0 + v1 * p1) + (v2 * p2 + v3 * p3)
                rise[t] += (w0 * p0 + w1 * p1) + (w2 * p2 + w3 * p3)
            k += 4
    for m in range(len(mel)):
        for t in range(count):
            mel[m, t] = max(bands[m + 1, t], floor)


@compiled("void(f4[:, ::1], f4, f4)")
def scale(mel: np.ndarray, factor: float, floor: float) -> None:
    """Multiply in place, down to a floor."""
    for m in range(len(mel)):
        for t in range(mel.shape[1]):
            mel[m, t] = max(mel[m, t] * factor, floor)
