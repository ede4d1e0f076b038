"""Log-mel spectrograms: librosa's definition, several times its speed on a CPU; or on a device.

Shapes: `n` samples of a recording, `N` of a segment, `S` segments, `T` frames, `F` FFT bins, `M`
mel bands.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from shards.errors import UserError

if TYPE_CHECKING:
    import torch

FLOOR, FLOOR_DB = 1e-10, -100.0

#: What the settings leave no choice about; stands in dataset.json beside them.
CONSTANTS = {
    "window": "hann",
    "center": True,
    "pad_mode": "constant",
    "power": 2.0,
    "scale": "slaney",
    "norm": "slaney",
    "reference": 1.0,
    "floor": FLOOR,
    "unit": "dB",
}

#: Frames a pass. Fewer cost more calls a frame, more leave the cache: bench/mel.py.
CHUNK = 160

#: Mel bands a matrix product. Neighbours share bins, and a product over their bins alone does
#: without nearly all of the filterbank's zeros.
BLOCK = 8


@dataclass(frozen=True, kw_only=True)
class MelSettings:
    """The settings of a mel spectrogram; Hz and samples.

    Raises:
        UserError: a value out of its range, or so many bands that some contain no FFT bin.
    """

    sample_rate: int = 16000
    n_fft: int = 2048
    hop_length: int = 512
    n_mels: int = 128
    fmin: float = 0.0
    fmax: float = 8000.0

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_fft", "hop_length", "n_mels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} {value}: has to be a whole number, at least 1")
        if self.hop_length > self.n_fft:
            raise UserError(
                f"hop_length {self.hop_length}: longer than n_fft {self.n_fft}, audio between the "
                f"frames would be lost; give at most {self.n_fft}"
            )
        if not self.fmax <= self.sample_rate / 2:
            raise UserError(
                f"fmax {self.fmax:g} Hz: above half of sample_rate {self.sample_rate}; "
                f"give at most {self.sample_rate / 2:g}"
            )
        if not 0 <= self.fmin < self.fmax:
            raise UserError(f"fmin {self.fmin:g} Hz: has to lie between 0 and fmax {self.fmax:g}")
        check_bands(self)

    def frames(self, n_samples: int) -> int:
        """T of a segment of `n_samples`: one frame for every started hop."""
        return -(-n_samples // self.hop_length)

    def to_dict(self) -> dict[str, Any]:
        """The settings and the constants, as dataset.json keeps them."""
        return asdict(self) | CONSTANTS


def check_bands(settings: MelSettings) -> None:
    """Raise a UserError if a mel band lies between two FFT bins: it would be silent for ever."""
    empty = int(np.count_nonzero(~filterbank(settings).any(axis=1)))
    if empty:
        raise UserError(
            f"n_mels {settings.n_mels} with n_fft {settings.n_fft}: {empty} mel bands contain no "
            f"FFT bin (one every {settings.sample_rate / settings.n_fft:.3g} Hz); lower n_mels or "
            "raise n_fft"
        )


@lru_cache(maxsize=8)
def filterbank(settings: MelSettings) -> np.ndarray:
    """(M, F) float32 triangles, Slaney scale and norm (librosa.filters.mel)."""
    import warnings

    import librosa.filters

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # check_bands says it, and stops
        return librosa.filters.mel(
            sr=settings.sample_rate,
            n_fft=settings.n_fft,
            n_mels=settings.n_mels,
            fmin=settings.fmin,
            fmax=settings.fmax,
        )


@lru_cache(maxsize=8)
def blocks(settings: MelSettings) -> list[tuple[slice, slice, np.ndarray]]:
    """The filterbank in pieces: bands, columns and weights (columns, bands); see `mel_power`.

    Columns are re^2, im^2, re^2, ...: adding up the two of a bin first would take longer than the
    multiplications that it saves.
    """
    weights, found = np.repeat(filterbank(settings), 2, axis=1), []
    for first in range(0, settings.n_mels, BLOCK):
        bands = slice(first, min(first + BLOCK, settings.n_mels))
        used = np.flatnonzero(weights[bands].any(axis=0))
        columns = slice(used[0], used[-1] + 1)
        found.append((bands, columns, np.ascontiguousarray(weights[bands, columns].T)))
    return found


@lru_cache(maxsize=8)
def hann(n_fft: int) -> np.ndarray:
    """(n_fft,) float32, periodic."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


def log_mel(
    wave: np.ndarray,
    starts: np.ndarray,
    length: int,
    settings: MelSettings,
    device: str = "cpu",
) -> np.ndarray:
    """Mel power of a recording's segments in dB relative to 1.0, not below -100.

    What `librosa.feature.melspectrogram` gives by default for each segment alone (periodic Hann
    window, centred frames, zeros around the segment, power 2), cut to T = ceil(length / hop_length)
    frames. Frames that lie inside of several segments are computed once.

    Args:
        wave: (n,) float32.
        starts: (S,) int64, where the segments start, in samples, ascending; start + length <= n.
        device: "cpu" for the code below, else one of torch's; the values differ by rounding.

    Returns:
        (S, M, T) float32.
    """
    if wave.ndim != 1:
        raise ValueError(f"wave of shape {wave.shape}: expected (n,)")
    if len(starts) and starts[-1] + length > len(wave):
        raise ValueError(f"a segment of {length} at {starts[-1]} ends behind {len(wave)} samples")
    if device != "cpu":
        from shards.mel_device import log_mel_on

        return log_mel_on(device, wave, starts, length, settings)
    import torch

    samples = torch.from_numpy(np.require(wave, np.float32, ["C", "W"]))
    steps = set(np.diff(starts).tolist())
    step = steps.pop() if len(steps) == 1 else length
    if step < length >= 2 * settings.n_fft and step % settings.hop_length == 0:
        return overlapping(samples[starts[0] :], len(starts), step, length, settings)
    mel = np.empty((len(starts), settings.n_mels, settings.frames(length)), np.float32)
    for start, out in zip(starts.tolist(), mel, strict=True):
        segment = samples[None, start : start + length]
        out[:] = decibels(cut_frames(segment, 0, out.shape[1], settings)[0], settings).T
    return mel


def overlapping(
    samples: "torch.Tensor", count: int, step: int, length: int, settings: MelSettings
) -> np.ndarray:
    """`log_mel` of S = count segments that start every `step` samples, a multiple of hop_length.

    Their frames lie on one grid; those at the edges of a segment, which reach into the zeros around
    it, are its own.
    """
    n_fft, hop, total = settings.n_fft, settings.hop_length, settings.frames(length)
    head = -(-(n_fft // 2) // hop)
    tail = min((length - n_fft + n_fft // 2) // hop + 1, total)
    mel = np.empty((count, settings.n_mels, total), np.float32)
    segments = samples.unfold(0, length, step)[:count]
    for first, last in ((0, head), (tail, total)):
        if first < last:
            edges = cut_frames(segments, first, last, settings).reshape(-1, n_fft)
            found = decibels(edges, settings).reshape(count, last - first, settings.n_mels)
            mel[:, :, first:last] = found.transpose(0, 2, 1)
    every = step // hop
    inner = cut_frames(samples[None], head, (count - 1) * every + tail, settings)[0]
    shared = sliding_window_view(decibels(inner, settings), tail - head, axis=0)
    mel[:, :, head:tail] = shared[::every]
    return mel


def cut_frames(
    segments: "torch.Tensor", first: int, last: int, settings: MelSettings
) -> "torch.Tensor":
    """Centred frames `first` to `last` - 1 of segments (S, N), zeros around: (S, T, n_fft)."""
    from torch.nn.functional import pad

    begin = first * settings.hop_length - settings.n_fft // 2
    end = (last - 1) * settings.hop_length - settings.n_fft // 2 + settings.n_fft
    before, behind = max(-begin, 0), max(end - segments.shape[1], 0)
    inside = segments[:, max(begin, 0) : max(end, 0)]
    padded = pad(inside, (before, behind)) if before or behind else inside
    return padded.unfold(1, settings.n_fft, settings.hop_length)


def decibels(frames: "torch.Tensor", settings: MelSettings) -> np.ndarray:
    """(T, n_fft) float32 frames to (T, M) float32 mel power in dB."""
    import torch

    mel = np.empty((len(frames), settings.n_mels), np.float32)
    size = -(-len(frames) // max(1, -(-len(frames) // CHUNK)))  # of equal passes
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processes are the parallelism here, and one thread has one rounding
    for first in range(0, len(frames), size):
        mel_power(frames[first : first + size], mel[first : first + size], settings)
    torch.set_num_threads(threads)
    np.maximum(mel, FLOOR, out=mel)
    np.log10(mel, out=mel)
    mel *= 10
    return np.maximum(mel, FLOOR_DB, out=mel)  # log10 of the floor is -10.000001 in float32


def mel_power(frames: "torch.Tensor", mel: np.ndarray, settings: MelSettings) -> None:
    """Write the power of (T, n_fft) float32 frames into `mel`, (T, M) float32."""
    import torch  # MKL's real FFT takes 0.6 of the time of scipy's

    spectrum = torch.fft.rfft(frames * torch.from_numpy(hann(settings.n_fft)))
    squares = torch.view_as_real(spectrum).numpy().reshape(len(frames), -1)
    np.square(squares, out=squares)
    for bands, columns, weights in blocks(settings):
        np.matmul(squares[:, columns], weights, out=mel[:, bands])
