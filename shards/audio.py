"""Audio files in, mono waves out: probe, decode, resample, whatever the length in little memory.

Shapes: `n` samples of a recording, `C` channels. Waves are float32, full scale 1.0.
"""

import math
import os
from collections.abc import Iterator
from itertools import chain

import numpy as np

from shards.container import AudioError, Probe, source

#: -100 dBFS. One step of 16-bit audio is 3.1e-5, so even a lone step in one of three channels
#: counts as sound; what stays below is digital silence or the residue of a resampler.
SILENT_PEAK = 1e-5
FULL_SCALE = 1 - 2**-15  # the largest 16-bit sample
PIECE = 1 << 14  # values that stay in the cache
ABSURD_PEAK = 1e6  # 120 dB above full scale; floats that were never scaled reach 90 dB


def probe(path: str | os.PathLike[str]) -> Probe:
    """Read the header of an audio file; its samples only where it does not tell how many there are.

    Raises:
        AudioError: not a file that libsndfile or FFmpeg knows, no samples in it, or a rate that is
            none.
    """
    with source(path) as file:
        frames = file.header.frames or sum(map(len, file.blocks(0, None)))
        if not frames:
            raise AudioError("no samples")
        return file.header._replace(frames=frames)


class Levels:
    """What the samples of a recording were like before anything was done to them."""

    def __init__(self) -> None:
        self.sample_rate = 1  # Hz
        self.frames = self.samples = self.bad = self.full = 0
        self.peak = 0.0

    @property
    def seconds(self) -> float:
        """What was decoded, whatever the header said."""
        return self.frames / self.sample_rate

    @property
    def clipped(self) -> float:
        """The share of samples at or above full scale, to six digits."""
        return round(self.full / max(1, self.samples), 6)

    def add(self, block: np.ndarray) -> np.ndarray:
        """Count (n, C) frames; they come back as float32."""
        block, low, high = as_floats(block)
        self.frames += len(block)
        self.samples += block.size
        if not (math.isfinite(low) and math.isfinite(high)):
            self.bad += int(np.count_nonzero(~np.isfinite(block)))
        self.peak = max(self.peak, -low, high)
        if max(-low, high) >= FULL_SCALE:
            self.full += int(np.count_nonzero(np.abs(block) >= FULL_SCALE))
        return block

    def check(self) -> None:
        """Raise an AudioError if no wave can come of this."""
        if not self.frames:
            raise AudioError("no samples")
        if self.bad:
            raise AudioError(f"not finite: {self.bad} NaN or Inf samples")
        if self.peak > ABSURD_PEAK:
            raise AudioError(f"no audio: a sample of {self.peak:.3g}, where full scale is 1")


def piece_frames(start: float, end: float | None, rate: int) -> tuple[int, int | None]:
    """The frames at which a piece from `start` to `end` seconds begins and stops."""
    return round(start * rate), None if end is None else round(end * rate)


def decode(
    path: str | os.PathLike[str],
    sample_rate: int,
    start: float = 0.0,
    end: float | None = None,
    levels: Levels | None = None,
) -> np.ndarray:
    """A recording as mono at `sample_rate` Hz: the mean of its channels, resampled by soxr (HQ).

    `start` and `end` in seconds choose a piece of it. A file that holds less than its header claims
    gives what is there, where its decoder does. However long the file, and whatever its rate and
    channels, no more than a block is held of it beside the result. `levels` is filled in.

    Returns:
        (n,) float32, n >= 1.

    Raises:
        AudioError: unreadable, damaged where the decoder cannot go on, empty, NaN or Inf in it.
    """
    levels = levels or Levels()
    with source(path) as file:
        levels.sample_rate = rate = file.header.sample_rate
        blocks = (mono(block, levels) for block in file.blocks(*piece_frames(start, end, rate)))
        wave = resampled(blocks, rate, sample_rate)
    levels.check()
    if not len(wave):
        raise AudioError("no samples")
    return wave


def mono(block: np.ndarray, levels: Levels) -> np.ndarray:
    """The mean (n,) of the channels of (n, C) frames, which are counted."""
    if block.shape[1] == 1:
        return levels.add(block)[:, 0]
    wave, each = np.empty(len(block), np.float32), max(1, PIECE // block.shape[1])
    for n in range(0, len(block), each):
        wave[n : n + each] = levels.add(block[n : n + each]).mean(axis=1)
    return wave


def resampled(waves: Iterator[np.ndarray], rate: int, sample_rate: int) -> np.ndarray:
    """The waves (n,) at `rate`, one behind the other, at another: with soxr at once where it is
    one, which is faster, or as they come, which gives the same."""
    import soxr

    first, second = next(waves, np.zeros(0, np.float32)), next(waves, None)
    if second is None:
        same = rate == sample_rate or not len(first)
        return first if same else soxr.resample(first, rate, sample_rate, quality="HQ")
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
    wave = bytearray()  # grows in place: an array would be copied, or trust a header
    for block in chain([first, second], waves):
        wave += (block if rate == sample_rate else stream.resample_chunk(block, False)).data
    if rate != sample_rate:
        wave += stream.resample_chunk(first[:0], True).data
    return np.frombuffer(wave, np.float32)


def as_floats(block: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(n, C) samples as float32, with the least and the largest of them."""
    if block.dtype != np.int16:
        return block, float(block.min()), float(block.max())
    from shards.loops import floats

    samples = np.empty(block.shape, np.float32)
    return samples, *floats(block.reshape(-1), samples.reshape(-1))


def peak(wave: np.ndarray) -> float:
    """The largest magnitude of (n,) samples, without a copy of them."""
    return max(float(wave.max()), -float(wave.min())) if len(wave) else 0.0


def is_silent(wave: np.ndarray) -> bool:
    """Whether no sample reaches -100 dBFS, less than a third of one step of 16-bit audio."""
    from shards.loops import reaches

    return not reaches(np.ascontiguousarray(wave), SILENT_PEAK)


def dc_offset(wave: np.ndarray) -> float:
    """The mean of (n,) samples, to six digits."""
    from shards.loops import total

    return round(total(np.ascontiguousarray(wave)) / len(wave), 6)
