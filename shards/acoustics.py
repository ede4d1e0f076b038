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


def acoustics(values: np.ndarray) -> Acoustics:
    """Of (S, M, T) in dB, as they are stored. The upper quartile of a band decides on its energy,
    not its mean: the cut edges of a segment alone fill every band."""
    from shards.loops import audible_frames, band_limit

    values = values[:SEGMENTS]
    power = values * np.float32(math.log(10) / 10)
    frames = np.exp(power, out=power).sum(axis=1)
    audible = np.empty(frames.shape, np.bool_)
    quiet = 10 ** (-QUIET / 10)
    mean, silence = audible_frames(frames, 2 * values.shape[1] * FLOOR, quiet, audible)
    level = 10 * math.log10(mean) if mean else FLOOR_DB
    return Acoustics(round(level, 2), silence, band_limit(values, audible, FAINT))
