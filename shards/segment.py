"""Where the segments of a recording lie, and what fills the last one.

Shapes: `n` samples of a recording, `S` segments. Lengths are in samples.
"""

from typing import Any

import numpy as np

PADS = ("silence", "repeat", "reflect")
TAILS = ("pad", "drop")


def segment_starts(n: int, length: int, hop: int, tail: str = "pad") -> np.ndarray:
    """Where the segments of a recording of `n` samples start: 0, hop, 2 * hop, ...

    Every full window counts. With tail "pad" one more follows, to be filled up, where it would add
    at least 10 % of `length` in audio that no full window holds: a resampler's odd sample makes no
    nearly empty segment. With "drop" none does. A recording that fits into one window is that
    window, however short.

    Returns:
        (S,) int64, S >= 1.
    """
    return np.arange(segment_count(n, length, hop, tail), dtype=np.int64) * hop


def segment_count(n: int, length: int, hop: int, tail: str = "pad") -> int:
    """How many segments that are."""
    if length < 1 or hop < 1:
        raise ValueError(f"length {length} and hop {hop} have to be at least 1 sample")
    full = max(0, n - length) // hop + 1
    added = n - ((full - 1) * hop + max(length, hop))
    return full + (tail == "pad" and 10 * added >= length)


def fill_up(wave: np.ndarray, start: int, length: int, pad: str) -> np.ndarray:
    """`wave` (n,) such that the window of `length` that begins at `start` < n is whole.

    What is missing is silence, or the audio of that window again ("repeat"), or to and fro
    ("reflect").
    """
    missing = start + length - len(wave)
    if missing <= 0:
        return wave
    if pad == "silence":  # numpy's takes ten times as long, a tenth of what a short file costs
        whole = np.zeros(start + length, wave.dtype)
        whole[: len(wave)] = wave
        return whole
    mode: Any = {"repeat": "wrap", "reflect": "reflect"}[pad]
    return np.concatenate([wave[:start], np.pad(wave[start:], (0, missing), mode)])
