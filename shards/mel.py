"""Log-mel spectrograms: librosa's definition, many times its speed on a CPU; or on a device.

Shapes: `n` samples of a recording, `N` of a segment, `S` segments, `T` frames, `F` FFT bins, `M`
mel bands.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shards.errors import UserError

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
        if self.n_fft % 2:
            raise UserError(f"n_fft {self.n_fft}: has to be even; give {self.n_fft + 1}")
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

    @cached_property
    def filterbank(self) -> np.ndarray:
        """(M, F) float32 triangles, Slaney scale and norm (librosa.filters.mel).

        Made with the settings, and goes with them to other processes: librosa stays in this one.
        """
        import warnings

        import librosa.filters

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # check_bands says it, and stops
            return librosa.filters.mel(
                sr=self.sample_rate,
                n_fft=self.n_fft,
                n_mels=self.n_mels,
                fmin=self.fmin,
                fmax=self.fmax,
            )

    def frames(self, n_samples: int) -> int:
        """T of a segment of `n_samples`: one frame for every started hop."""
        return -(-n_samples // self.hop_length)

    def to_dict(self) -> dict[str, Any]:
        """The settings and the constants, as dataset.json keeps them."""
        return asdict(self) | CONSTANTS


def check_bands(settings: MelSettings) -> None:
    """Raise a UserError if a mel band lies between two FFT bins: it would be silent for ever."""
    empty = int(np.count_nonzero(~settings.filterbank.any(axis=1)))
    if empty:
        raise UserError(
            f"n_mels {settings.n_mels} with n_fft {settings.n_fft}: {empty} mel bands contain no "
            f"FFT bin (one every {settings.sample_rate / settings.n_fft:.3g} Hz); lower n_mels or "
            "raise n_fft"
        )


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
        device: "cpu" for shards.frames, else one of torch's; the values differ by rounding.

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
    from shards.frames import decibels

    wave, starts = np.require(wave, np.float32, ["C", "W"]), np.asarray(starts, np.int64)
    steps = set(np.diff(starts).tolist()) if len(starts) > 1 else set()
    step = steps.pop() if len(steps) == 1 else length
    if step < length >= 2 * settings.n_fft and step % settings.hop_length == 0:
        return overlapping(wave, starts, step, length, settings)
    total = settings.frames(length)
    mel = np.empty((len(starts), settings.n_mels, total), np.float32)
    every = range(total)
    heard = range(min(total, reached(wave[starts[-1] :][:length], settings)) if len(starts) else 0)
    whole = len(starts) - (len(heard) < total)
    decibels(wave, starts[:whole], length, every, settings, mel, every, total)
    if whole < len(starts):
        decibels(wave, starts[whole:], length, heard, settings, mel[whole:], heard, len(heard))
        mel[whole:, :, len(heard) :] = FLOOR_DB
    return mel


def reached(wave: np.ndarray, settings: MelSettings) -> int:
    """How many frames of (n,) samples hold more than the silence that a short file is filled with;
    all of them if there is nothing else."""
    last = len(wave) if wave[-1] else (wave != 0).tobytes().rfind(1) + 1
    return -(-((last or len(wave)) + settings.n_fft // 2) // settings.hop_length)


def overlapping(
    wave: np.ndarray, starts: np.ndarray, step: int, length: int, settings: MelSettings
) -> np.ndarray:
    """`log_mel` of segments that start every `step` samples, a multiple of hop_length.

    Their frames lie on one grid; those at the edges of a segment, which reach into the zeros around
    it, are its own.
    """
    from shards.frames import decibels

    n_fft, hop, total = settings.n_fft, settings.hop_length, settings.frames(length)
    head = -(-(n_fft // 2) // hop)
    tail = min((length - n_fft + n_fft // 2) // hop + 1, total)
    mel = np.empty((len(starts), settings.n_mels, total), np.float32)
    for edge in (range(head), range(tail, total)):
        decibels(wave, starts, length, edge, settings, mel, edge, len(edge))
    every, span = step // hop, (len(starts) - 1) * step + length
    inner = range(head, (len(starts) - 1) * every + tail)
    decibels(wave, starts[:1], span, inner, settings, mel, range(head, tail), every)
    return mel
