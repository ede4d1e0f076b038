"""Log-mel spectrograms on a CPU: librosa's definition, several times its speed.

Shapes: `S` segments, `N` samples of a segment, `T` frames, `F` FFT bins, `M` mel bands.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

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

#: At n_fft 2048 the windowed frames, spectrum and power of 64 frames are 1.3 MB: they stay in the
#: L2 cache.
CHUNK = 64


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
    empty = int(np.count_nonzero(np.diff(filterbank(settings).indptr) == 0))
    if empty:
        raise UserError(
            f"n_mels {settings.n_mels} with n_fft {settings.n_fft}: {empty} mel bands contain no "
            f"FFT bin (one every {settings.sample_rate / settings.n_fft:.3g} Hz); lower n_mels or "
            "raise n_fft"
        )


@lru_cache(maxsize=8)
def filterbank(settings: MelSettings) -> "csr_matrix":
    """(M, F) sparse float32 triangles, Slaney scale and norm (librosa.filters.mel)."""
    import warnings

    import librosa.filters
    from scipy.sparse import csr_matrix

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # check_bands says it, and stops
        triangles = librosa.filters.mel(
            sr=settings.sample_rate,
            n_fft=settings.n_fft,
            n_mels=settings.n_mels,
            fmin=settings.fmin,
            fmax=settings.fmax,
        )
    return csr_matrix(triangles)


def log_mel(segments: np.ndarray, settings: MelSettings) -> np.ndarray:
    """Mel power in dB relative to 1.0, not below -100: (S, N) float32 to (S, M, T) float32.

    What `librosa.feature.melspectrogram` gives by default (periodic Hann window, centred frames,
    zero padding, power 2), cut to T = ceil(N / hop_length) frames.
    """
    if segments.ndim != 2:
        raise ValueError(f"segments of shape {segments.shape}: expected (S, N)")
    n_fft, hop = settings.n_fft, settings.hop_length
    n, pad = segments.shape[1], n_fft // 2
    padded = np.zeros(n + n_fft, np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop][: settings.frames(n)]
    mel = np.empty((len(segments), settings.n_mels, len(frames)), np.float32)
    for segment, bands in zip(segments, mel, strict=True):
        padded[pad : pad + n] = segment
        for first in range(0, len(frames), CHUNK):
            bands[:, first : first + CHUNK] = mel_power(frames[first : first + CHUNK], settings)
        np.maximum(bands, FLOOR, out=bands)
        np.log10(bands, out=bands)
        bands *= 10
        np.maximum(bands, FLOOR_DB, out=bands)  # log10 of the floor is -10.000001 in float32
    return mel


def mel_power(frames: np.ndarray, settings: MelSettings) -> np.ndarray:
    """(T, n_fft) float32 frames to (M, T) float32 mel power."""
    import scipy.fft

    # Along axis 0 the spectrum comes out as (F, T), which the filterbank reads without a copy.
    spectrum = scipy.fft.rfft((frames * hann(settings.n_fft)).T, axis=0)
    power = spectrum.real**2  # re^2 + im^2: four times as fast as abs()^2
    power += spectrum.imag**2
    return filterbank(settings) @ power


@lru_cache(maxsize=8)
def hann(n_fft: int) -> np.ndarray:
    """(n_fft,) float32, periodic."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)
