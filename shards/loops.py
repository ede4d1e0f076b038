"""The inner loops around log-mel, compiled as `shards.kernels` are: what is counted, and prints.

Shapes: `n` samples, `S` segments, `M` mel bands, `T` frames, `G` steps and `B` bands of a grain.
"""

from typing import Any

import numpy as np

from shards.kernels import compiled


@compiled("UniTuple(f4, 2)(i2[::1], f4[::1])")
def floats(steps: np.ndarray, samples: np.ndarray) -> Any:
    """Turn (n,) samples of 16 bits into float32, as libsndfile does; the least and the largest."""
    low, high, step = np.int16(2**15 - 1), np.int16(-(2**15)), np.float32(2**-15)
    for n in range(len(steps)):
        low, high = min(low, steps[n]), max(high, steps[n])
        samples[n] = np.float32(steps[n]) * step
    return np.float32(low) * step, np.float32(high) * step


@compiled("f8(f4[::1])", "reassoc")
def total(wave: np.ndarray) -> float:
    """The sum of (n,) samples, in float64."""
    found = 0.0
    for n in range(len(wave)):
        found += wave[n]
    return found


@compiled("b1(f4[::1], f4)")
def reaches(wave: np.ndarray, least: float) -> bool:
    """Whether any of (n,) samples has that magnitude."""
    n = 0
    while n < len(wave) and abs(wave[n]) < least:
        n += 1
    return n < len(wave)


@compiled("Tuple((f8, i8))(f4[:, ::1], f4, f4, b1[:, ::1])")
def audible_frames(frames: np.ndarray, least: float, quiet: float, audible: np.ndarray) -> Any:
    """The mean of the (S, T) powers above `least`, 0 if there is none, marked in `audible`; and
    how many of the first segment come before the first above `quiet` times the loudest of all.
    """
    total, count, loudest = 0.0, 0, np.float32(0)
    for s in range(frames.shape[0]):
        for t in range(frames.shape[1]):
            power = frames[s, t]
            audible[s, t] = power > least
            loudest = max(loudest, power)
            if power > least:
                total += power
                count += 1
    silence = 0
    while silence < frames.shape[1] and frames[0, silence] <= loudest * quiet:
        silence += 1
    return total / max(1, count), silence


@compiled("i8(f4[:, :, ::1], b1[:, ::1], f4)", "reassoc")
def band_limit(values: np.ndarray, audible: np.ndarray, faint: float) -> int:
    """The highest band whose upper quartile over audible (S, T) frames lies less than `faint` below
    that of the loudest one; 0 where there is no such frame. `values` (S, M, T).

    A quartile is above a number where more than a quarter of the values are: counting is enough.
    """
    segments, bands, frames = values.shape
    count = int(np.count_nonzero(audible))
    if count == 0:
        return 0
    at, loudest, most = 3 * count // 4, np.float32(0), np.float32(-1e30)
    heard = np.empty(count, np.float32)
    for m in range(-1, bands):  # first the band that is loudest on average: few are sorted then
        if m < 0:
            for n in range(bands):
                mean = np.float32(0)
                for s in range(segments):
                    for t in range(frames):
                        mean += values[s, n, t]
                if mean > most:
                    m, most = n, mean
            above = count
        else:
            above = 0
            for s in range(segments):
                for t in range(frames):
                    above += audible[s, t] & (values[s, m, t] > loudest)
        if above >= count - at:
            n = 0
            for s in range(segments):
                for t in range(frames):
                    if audible[s, t]:
                        heard[n] = values[s, m, t]
                        n += 1
            loudest = np.sort(heard)[at]
    for m in range(bands - 1, -1, -1):
        above = 0
        for s in range(segments):
            for t in range(frames):
                above += audible[s, t] & (values[s, m, t] > loudest - faint)
        if above >= count - at:
            return m
    return 0


@compiled("void(f4[:, :, ::1], i8[::1], f4, f4[:, :, ::1])")
def pool(values: np.ndarray, edges: np.ndarray, reach: float, steps: np.ndarray) -> None:
    """Means of (S, M, T) over blocks of bands and of frames: (S, G, B). What lies more than `reach`
    below the highest of a segment counts as that.

    Block b of bands is `edges[b]` to `edges[b + 1]`; a step has T // G frames.
    """
    count = values.shape[2] // steps.shape[1]
    line = np.empty(values.shape[2], np.float32)
    for s in range(values.shape[0]):
        line[:] = values[s, 0]
        for m in range(1, values.shape[1]):
            row = values[s, m]
            for t in range(len(row)):
                line[t] = max(line[t], row[t])
        low = line.max() - np.float32(reach)
        for b in range(steps.shape[2]):
            line[:] = 0
            for m in range(edges[b], edges[b + 1]):
                row = values[s, m]
                for t in range(len(row)):
                    line[t] += max(row[t], low)
            share = np.float32(1 / ((edges[b + 1] - edges[b]) * count))
            for g in range(steps.shape[1]):
                total = np.float32(0)
                for t in range(g * count, (g + 1) * count):
                    total += line[t]
                steps[s, g, b] = total * share


@compiled("void(f4[:, :, ::1], i8, f4, f4, f4, i1[:, :, ::1])", "reassoc")
def flatten(
    steps: np.ndarray, reach: int, rms: float, least: float, limit: float, grains: np.ndarray
) -> None:
    """Take from (S, G, B) the mean of each step, then of each band the mean of the steps around it.

    Those are up to `reach` to both sides. Steps where all bands are alike, as in padding, do not
    count, and become 0. What is left of a band is brought to `rms`, unless it has less than `least`
    of it, and rounded, at most `limit`.
    """
    n, bands = steps.shape[1:]
    sounds, before = np.empty(n, np.bool_), np.empty((n, bands), np.float32)
    for s in range(len(steps)):
        total, square = np.zeros(bands, np.float32), np.zeros(bands, np.float32)
        count = heard = 0
        for g in range(n):
            row, mean = steps[s, g], np.float32(0)
            sounds[g] = False
            for b in range(1, bands):
                if abs(row[b] - row[0]) > 1e-3:
                    sounds[g] = True
                    heard += 1
                    break
            for b in range(bands):
                mean += row[b]
            mean /= np.float32(bands)
            for b in range(bands):
                before[g, b] = (row[b] - mean) * sounds[g]
        for g in range(-reach, n):
            last, first = g + reach, g - reach - 1
            if last < n and sounds[last]:
                count += 1
                for b in range(bands):
                    total[b] += before[last, b]
            if first >= 0 and sounds[first]:
                count -= 1
                for b in range(bands):
                    total[b] -= before[first, b]
            if g >= 0:
                share = np.float32(1 / max(1, count))
                for b in range(bands):
                    x = (before[g, b] - total[b] * share) * sounds[g]
                    steps[s, g, b] = x
                    square[b] += x * x
        for b in range(bands):
            square[b] = rms / max(least, np.sqrt(square[b] / np.float32(max(1, heard))))
        for g in range(n):
            for b in range(bands):
                x = min(limit, max(-limit, steps[s, g, b] * square[b]))
                grains[s, g, b] = np.int8(np.rint(x))


@compiled("void(i1[:, :, ::1], i8[::1], i8[::1], i8, f4[::1])")
def agree(grains: np.ndarray, a: np.ndarray, b: np.ndarray, most: int, best: np.ndarray) -> None:
    """The highest correlation of each pair of grains (S, G, B), shifted by up to `most` steps.

    Where they agree a little they are also compared half a step apart: the sum of two steps is what
    lies between them.
    """
    steps, bands = grains.shape[1:]
    between = np.empty((max(1, steps - 1), bands), np.int8)
    before = np.zeros((2, steps + 1))  # energy before each step
    for pair in range(len(best)):
        one, other, top = grains[a[pair]], grains[b[pair]], 0.0
        for turn in range(2):
            if turn:
                if top < 0.3 or steps < 2:
                    break
                for g in range(steps - 1):
                    for n in range(bands):
                        between[g, n] = other[g, n] + other[g + 1, n]
                other = between
            for side, grain in enumerate((one, other)):
                for g in range(len(grain)):
                    energy = np.int32(0)
                    for n in range(bands):
                        energy += np.int32(grain[g, n]) * np.int32(grain[g, n])
                    before[side, g + 1] = before[side, g] + energy
            end = len(other)
            half_one, half_other = before[0, steps] / 2, before[1, end] / 2
            for shift in range(-most, most + 1):
                first, last = max(0, shift), min(steps, end + shift)
                x, y = one[first:last].ravel(), other[first - shift : last - shift].ravel()
                dot = np.int32(0)
                for n in range(len(x)):
                    dot += np.int32(x[n]) * np.int32(y[n])
                energy_one = max(before[0, last] - before[0, first], half_one)
                energy_other = max(before[1, last - shift] - before[1, first - shift], half_other)
                top = max(top, dot / np.sqrt(max(energy_one * energy_other, 1.0)))
        best[pair] = top
