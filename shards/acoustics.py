"""What a recording sounds like whatever is heard in it: its level, its silence, its band limit.

Shapes: `S` segments, `M` mel bands, `T` frames.
"""

import math
from typing import NamedTuple

import numpy as np

from shards.mel import FLOOR, FLOOR_DB

SEGMENTS = 8  # of a recording that are looked at, from its start
QUIET, FAINT = 40.0, 60.0  # dB below the loudest frame; below the loudest band


class Acoustics(NamedTuple):
    """Stands in recordings.jsonl."""

    level: float  # dB, of the mean frame that is no padding
    leading_silence: int  # frames
    band_limit: int  # the highest band with energy


def acoustics(values: np.ndarray, stored: np.ndarray) -> Acoustics:
    """Of (S, M, T) in dB, as float32 and as float16."""
    values, stored = values[:SEGMENTS], stored[:SEGMENTS]
    frames = np.exp(values * np.float32(math.log(10) / 10)).sum(axis=1)
    audible = frames > 2 * stored.shape[1] * FLOOR
    level = 10 * math.log10(frames[audible].mean()) if audible.any() else FLOOR_DB
    loud = frames[0] > frames.max() * 10 ** (-QUIET / 10)
    silence = int(loud.argmax() if loud.any() else loud.size)
    rows = stored.transpose(1, 0, 2).reshape(stored.shape[1], -1)
    heard = np.compress(audible.ravel(), rows, axis=1)  # in one piece, unlike rows[:, audible]
    bands = upper_quartile(heard) if heard.size else np.ones(1)
    limit = np.flatnonzero(bands > bands.max() - FAINT)[-1]
    return Acoustics(round(level, 2), silence, int(limit))


def upper_quartile(heard: np.ndarray) -> np.ndarray:
    """(M,) what a quarter of (M, T) float16 lies above; numpy finds it faster among integers.

    Not the mean: the cut edges of a segment alone fill every band.
    """
    order, at = sortable(heard.view(np.int16)), 3 * heard.shape[1] // 4
    return sortable(np.partition(order, at, axis=1)[:, at]).view(np.float16).astype(np.float32)


def sortable(bits: np.ndarray) -> np.ndarray:
    """The bits of float16 as integers in the same order; and those back."""
    return bits ^ ((bits >> 15) & 0x7FFF)
