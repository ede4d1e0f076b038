"""The inner loops of log-mel, compiled by numba as this is imported; kept on disk from then on.

LANES frames are worked on at a time, each in a lane of its own: a frame's bits then do not depend
on its neighbours. Shapes: `T` frames, a multiple of LANES, `F` FFT bins, `M` mel bands.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from shards.lanes import LANES, columns, filled, larger, load, store


def words(*also: str) -> dict[str, Any]:
    """How loops are compiled; of `fastmath` fused multiply-adds, and what `also` names."""
    return {"fastmath": {"contract", *also}, "error_model": "numpy"}


def compiled(signature: str, *also: str) -> Callable[[Callable[..., Any]], Any]:
    """`njit` for one signature."""

    def compiler(function: Callable[..., Any]) -> Any:
        try:
            return njit(signature, nogil=True, cache=True, **words(*also))(function)
        except RuntimeError:  # no folder to keep it in: neither beside this file nor in the home
            return njit(signature, nogil=True, **words(*also))(function)

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
    """Fill (T, >= n_fft) with windowed frames, zeros where they reach out of their segment.

    Segments of `length` begin at `starts`; of each, `each` centred frames are wanted, from its
    frame `first` on. Those are counted through, and `number` is the first to be cut.
    """
    n_fft = len(window)
    for row in range(len(frames)):
        segment = starts[(number + row) // each]
        begin = (first + (number + row) % each) * hop - n_fft // 2
        low, high = max(0, -begin), min(n_fft, length - begin)
        frames[row, :low] = 0
        frames[row, high:n_fft] = 0
        inside, weight = wave[segment + begin + low : segment + begin + high], window[low:high]
        out = frames[row, low:high]
        for n in range(len(out)):
            out[n] = inside[n] * weight[n]


@njit(**words())
def pair(re: Any, im: Any, other_re: Any, other_im: Any, turn_re: Any, turn_im: Any) -> Any:
    """|X[k]|^2 and |X[H - k]|^2 of Z[k], Z[H - k] and a turn, vectors all."""
    s_re, s_im, d_re, d_im = re + other_re, im - other_im, re - other_re, im + other_im
    t_re = turn_re * d_re - turn_im * d_im
    t_im = turn_re * d_im + turn_im * d_re
    re, im, other_re, other_im = s_re + t_re, s_im + t_im, s_re - t_re, s_im - t_im
    return re * re + im * im, other_re * other_re + other_im * other_im


@njit(**words())
def powers(halves: np.ndarray, first: int, turns: np.ndarray, size: int, power: np.ndarray) -> None:
    """|X|^2 of real FFTs of 2 H numbers, transposed: `power` (>= F, LANES).

    `halves` (T, >= 2 H), from row `first` on, are the FFTs Z of their half, taken as H = `size`
    complex numbers each. With S = Z[k] + Z[H - k]*, D = Z[k] - Z[H - k]* and `turns`
    (2, 1 + H // 2), which is -i exp(-i pi k / H), X[k] = S + turn D and X[H - k]* = S - turn D;
    Z[H] is Z[0].
    """
    real, imaginary = turns[0], turns[1]
    for n in range(1, len(real), 2):
        k = min(n, len(real) - 2)
        re, im, next_re, next_im = columns(halves, first, 2 * k)
        last_re, last_im, other_re, other_im = columns(halves, first, 2 * (size - k - 1))
        turn = filled(real[k]), filled(imaginary[k])
        rising, falling = pair(re, im, other_re, other_im, turn[0], turn[1])
        store(power, k, 0, rising)
        store(power, size - k, 0, falling)
        turn = filled(real[k + 1]), filled(imaginary[k + 1])
        rising, falling = pair(next_re, next_im, last_re, last_im, turn[0], turn[1])
        store(power, k + 1, 0, rising)
        store(power, size - k - 1, 0, falling)
    re, im, next_re, next_im = columns(halves, first, 0)
    four = filled(np.float32(4))
    store(power, 0, 0, four * (re + im) * (re + im))
    store(power, size, 0, four * (re - im) * (re - im))


@compiled(
    "void(f4[:, ::1], f4[:, ::1], i8, f4[:, ::1], f4[:, ::1], i8[::1], i8[::1], f4, f4[:, ::1])"
)
def add_up(
    halves: np.ndarray,
    turns: np.ndarray,
    size: int,
    power: np.ndarray,
    weights: np.ndarray,
    bins: np.ndarray,
    ends: np.ndarray,
    floor: float,
    mel: np.ndarray,
) -> None:
    """The bands `mel` (M, T), at least `floor`, of FFTs; see `powers`.

    A bin lies in two bands at most, on the falling side of one and the rising side of the next.
    Step `m` takes the bins from `bins[m]` on, by four, with the rows of `weights` (four falling,
    four rising) from `ends[m]` to `ends[m + 1]`, into bands m - 1 (falling) and m (rising).
    """
    for first in range(0, mel.shape[1], LANES):
        powers(halves, first, turns, size, power)
        rise, least = filled(np.float32(0)), filled(np.float32(floor))
        for m in range(len(bins)):
            fall, rise, k = rise, filled(np.float32(0)), bins[m]
            for n in range(ends[m], ends[m + 1]):
                w = weights[n]
                p0, p1 = load(power, k, 0), load(power, k + 1, 0)
                p2, p3 = load(power, k + 2, 0), load(power, k + 3, 0)
                v0, v1, v2, v3 = filled(w[0]), filled(w[1]), filled(w[2]), filled(w[3])
                fall = fall + ((v0 * p0 + v1 * p1) + (v2 * p2 + v3 * p3))
                w0, w1, w2, w3 = filled(w[4]), filled(w[5]), filled(w[6]), filled(w[7])
                rise = rise + ((w0 * p0 + w1 * p1) + (w2 * p2 + w3 * p3))
                k += 4
            if m:
                store(mel, m - 1, first, larger(fall, least))
        store(mel, len(bins) - 1, first, larger(rise, least))


@compiled("void(f4[:, ::1], i8, i8, i8, i8, i8, f4, f4, f4[:, :, ::1])")
def place(
    found: np.ndarray,
    count: int,
    number: int,
    first: int,
    each: int,
    step: int,
    factor: float,
    floor: float,
    mel: np.ndarray,
) -> None:
    """`count` frames `found` (M, T), times `factor` and down to `floor`, into `mel` (S, M, T).

    The frames are counted through, and `number` is the first of these. Segment `s` takes `each`
    frames from number s * step on, which are its own from `first` on.
    """
    start = max(0, (number - each) // step + 1)
    for s in range(start, min(len(mel), (number + count - 1) // step + 1)):
        skipped = s * step - number
        low, high = max(0, -skipped), min(each, count - skipped)
        for m in range(len(found)):
            values, out = found[m, skipped + low : skipped + high], mel[s, m, first + low :]
            for t in range(len(values)):
                out[t] = max(values[t] * factor, floor)


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
