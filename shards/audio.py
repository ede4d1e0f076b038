"""Audio files in, fixed-length mono segments out: probe, decode, resample, cut.

Shapes: `n` samples of a recording, `S` segments, `N` samples of a segment. Waves are float32, full
scale 1.0.
"""

import os
from dataclasses import dataclass

import numpy as np

#: -100 dBFS. One step of 16-bit audio is 3.1e-5, so even a lone step in one of three channels
#: counts as sound; what stays below is digital silence or the residue of a resampler.
SILENT_PEAK = 1e-5


class AudioError(Exception):
    """A recording that cannot be used; the message is its reason in rejected.csv, a single line."""


@dataclass(frozen=True)
class Probe:
    """What a file's header says."""

    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sample_rate


def probe(path: str | os.PathLike[str]) -> Probe:
    """Read the header of an audio file, not its samples.

    Raises:
        AudioError: not a file that libsndfile knows, or no samples in it.
    """
    import soundfile

    try:
        info = soundfile.info(os.fspath(path))
    except (soundfile.SoundFileError, OSError) as error:
        raise unreadable(path, error) from None
    if info.frames < 1:
        raise AudioError("no samples")
    return Probe(info.frames, info.samplerate, info.channels)


def piece_frames(start: float, end: float | None, rate: int) -> tuple[int, int | None]:
    """The frames at which a piece from `start` to `end` seconds begins and stops."""
    return round(start * rate), None if end is None else round(end * rate)


def decode(
    path: str | os.PathLike[str], sample_rate: int, start: float = 0.0, end: float | None = None
) -> np.ndarray:
    """A recording as mono at `sample_rate` Hz: the mean of its channels, resampled by soxr (HQ).

    `start` and `end` in seconds choose a piece of it; nothing else is read where it can be sought.

    A file that holds less than its header claims gives what is there, where libsndfile does.

    Returns:
        (n,) float32, n >= 1.

    Raises:
        AudioError: unreadable, damaged where libsndfile cannot go on, empty, or NaN or Inf in it.
    """
    import soundfile

    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            rate = file.samplerate
            first, last = piece_frames(start, end, rate)
            file.seek(first) if first else None
            count = -1 if last is None else last - first
            frames = file.read(count, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise unreadable(path, error) from None
    bad = frames.size - np.count_nonzero(np.isfinite(frames))
    if bad:
        raise AudioError(f"not finite: {bad} NaN or Inf samples")
    wave = resample(frames.mean(axis=1), rate, sample_rate)
    if not len(wave):
        raise AudioError("no samples")
    return wave


def resample(wave: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """(n,) float32 at `rate` Hz as (n * sample_rate / rate,) float32, band-limited (soxr HQ)."""
    if rate == sample_rate or not len(wave):
        return wave
    import soxr

    return soxr.resample(wave, rate, sample_rate, quality="HQ")


def unreadable(path: str | os.PathLike[str], error: Exception) -> AudioError:
    """The reason without the path, which has a column of its own, on one line."""
    text = str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error)
    reason = " ".join(text.replace(os.fspath(path), "the file").split()).rstrip(".")
    return AudioError(f"not readable as audio: {reason[:1].lower()}{reason[1:]}")


def is_silent(wave: np.ndarray) -> bool:
    """Whether no sample reaches -100 dBFS, less than a third of one step of 16-bit audio."""
    return not len(wave) or float(np.abs(wave).max()) < SILENT_PEAK


def segment_starts(n: int, length: int, hop: int) -> np.ndarray:
    """Where the segments of a recording of `n` samples start: 0, hop, 2 * hop, ...

    Every full window counts. One more, to be padded with zeros, follows where it would add at least
    10 % of `length` in audio that no full window holds: a resampler's odd sample makes no nearly
    empty segment. A recording that fits into one window is that window, however short.

    Returns:
        (S,) int64, S >= 1.
    """
    if length < 1 or hop < 1:
        raise ValueError(f"length {length} and hop {hop} have to be at least 1 sample")
    full = max(0, n - length) // hop + 1
    added = n - ((full - 1) * hop + max(length, hop))
    return np.arange(full + (10 * added >= length), dtype=np.int64) * hop
