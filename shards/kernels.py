"""The inner loops of log-mel, compiled by numba as this is imported; kept on disk from then on.

Four frames are transposed at a time, so that what follows works on many frames in one vector: a
frame's bits then do not depend on its neighbours. Shapes: `T` frames, a multiple of 4, `F` FFT
bins, `M` mel bands.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit


def compiled(signature: str, *also: str) -> Callable[[Callable[..., Any]], Any]:
    """`njit` for one signature; of `fastmath` fused multiply-adds, and what `also` names."""
    words: dict[str, Any] = {"fastmath": {"contract", *also}, "error_model": "numpy"}

    def compiler(function: Callable[..., Any]) -> Any:
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


@compiled(
    "void(f4[:, ::1], f4[:, ::1], f4[:, :, ::1], f4[:, ::1], c16[:, ::1], c16[:, ::1])",
)
def powers(
    halves: np.ndarray,
    turns: np.ndarray,
    sides: np.ndarray,
    four: np.ndarray,
    pieces: np.ndarray,
    power: np.ndarray,
) -> None:
    """|X|^2 of real FFTs of 2 H numbers, transposed: `power` (F, T / 4), four float32 a complex.

    `halves` (T, 2 H) are the FFTs Z of their half, taken as H complex numbers each. With
    S = Z[k] + Z[H - k]*, D = Z[k] - Z[H - k]* and `turns` (2, 1 + H // 2), which is
    -i exp(-i pi k / H), X[k] = S + turn D and X[H - k]* = S - turn D; Z[H] is Z[0]. Those are one
    of the `sides` (2, 4, 1 + H // 2) each. Then four times four frames stand bin by bin in `four`
    (4, 4 F); `pieces` (4, F) is the same memory, complex.
    """
    # Without a sign an index cannot be counted from the end, and numba need not look.
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    size, half = np.uint64(halves.shape[1]) // two, np.uint64(turns.shape[1])
    real, imaginary = turns[0], turns[1]
    for first in range(0, len(halves) // 4, 4):
        for row in range(4):
            for frame in range(4):
                z = halves[4 * (first + row) + frame]
                rising, falling = sides[0, frame], sides[1, frame]
                rising[0] = np.float32(4) * (z[0] + z[1]) * (z[0] + z[1])
                falling[0] = np.float32(4) * (z[0] - z[1]) * (z[0] - z[1])
                for k in range(one, half):
                    re, im = z[two * k], z[two * k + one]
                    other_re, other_im = z[two * (size - k)], z[two * (size - k) + one]
                    s_re, s_im, d_re, d_im = (
                        re + other_re,
                        im - other_im,
                        re - other_re,
                        im + other_im,
                    )
                    t_re = real[k] * d_re - imaginary[k] * d_im
                    t_im = real[k] * d_im + imaginary[k] * d_re
                    re, im, other_re, other_im = s_re + t_re, s_im + t_im, s_re - t_re, s_im - t_im
                    rising[k] = re * re + im * im
                    falling[k] = other_re * other_re + other_im * other_im
            out = four[row]
            a, b, c, d = sides[0, 0], sides[0, 1], sides[0, 2], sides[0, 3]
            for k in range(half):
                n = np.uint64(4) * k
                out[n], out[n + one], out[n + two], out[n + three] = a[k], b[k], c[k], d[k]
            a, b, c, d = sides[1, 0], sides[1, 1], sides[1, 2], sides[1, 3]
            for k in range(half):
                n = np.uint64(4) * (size - k)
                out[n], out[n + one], out[n + two], out[n + three] = a[k], b[k], c[k], d[k]
        for place in range(pieces.shape[1]):
            for row in range(4):
                power[place, first + row] = pieces[row, place]


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


@compiled("void(i4[:, :, ::1], u2[:, :, ::1])")
def halve(bits: np.ndarray, stored: np.ndarray) -> None:
    """Round float32 to float16, to even: into `stored` and in place, both given as their bits.

    For numbers up to 65504; what is nearer to 0 than 2^-14 is 0. Ten times as fast as numpy.
    """
    for s in range(bits.shape[0]):
        for m in range(bits.shape[1]):
            row, out = bits[s, m], stored[s, m]
            for t in range(len(row)):
                size, sign = row[t] & 0x7FFFFFFF, row[t] & np.int32(-0x80000000)
                size = (size + 0xFFF + ((size >> 13) & 1)) >> 13
                size = size if size >= 113 << 10 else 112 << 10
                out[t] = (sign >> 16 & 0x8000) | (size - (112 << 10))
                row[t] = sign | (size << 13 if size > 112 << 10 else 0)


@compiled("void(f4[:, :, ::1], f8[:, ::1])", "reassoc")
def add_sums(values: np.ndarray, sums: np.ndarray) -> None:
    """Add (S, M, T) to (3, M): count, sum and sum of squares of each band."""
    for s in range(values.shape[0]):
        for m in range(values.shape[1]):
            first = second = 0.0
            for t in range(values.shape[2]):
                value = np.float64(values[s, m, t])
                first += value
                second += value * value
            sums[0, m] += values.shape[2]
            sums[1, m] += first
            sums[2, m] += second
