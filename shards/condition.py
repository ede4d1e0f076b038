"""What may be done to a wave before it is cut: high-pass, trim, loudness or peak.

Shapes: `n` samples of a recording. Waves are float32, full scale 1.0, and are changed in place: an
hour of them is held once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shards.audio import peak
from shards.errors import UserError

ORDER = 4  # of the Butterworth high-pass: 24 dB an octave
MAX_GAIN = 30.0  # dB, up or down, on the way to a loudness
FRAME, HOP = 4, 512  # silence is judged in windows of 2048 samples, every 512, as librosa does
RUN = 1 << 16  # samples filtered at once, in float64


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """The steps asked for, in the order they are done; None is off.

    Raises:
        UserError: a value out of its range, or both loudness and peak.
    """

    sample_rate: int  # Hz
    highpass: float | None = None  # Hz, where the filter is 3 dB down
    trim_silence: float | None = None  # dB below the loudest window
    loudness: float | None = None  # LUFS
    peak: float | None = None  # dBFS

    def __post_init__(self) -> None:
        half = self.sample_rate / 2
        for name, low, high, unit in (
            ("highpass", 0, half, f"Hz, below half the sample rate of {self.sample_rate}"),
            ("trim_silence", 0, 200, "dB below the loudest part"),
            ("loudness", -70, 0, "LUFS"),
            ("peak", -100, 1e-9, "dBFS"),
        ):
            value = getattr(self, name)
            if value is not None and not low < value < high:
                raise UserError(
                    f"--{name}={value:g}: has to lie between {low:g} and {round(high, 3):g} {unit}"
                )
        if self.loudness is not None and self.peak is not None:
            raise UserError("--loudness and --peak exclude each other; keep one")

    def trimmed(self, wave: np.ndarray) -> tuple[np.ndarray, int]:
        """The wave, high-passed, without the silence at its ends; and where that begins."""
        if self.highpass is not None:
            high_pass(wave, self.sample_rate, self.highpass)
        first, last = 0, len(wave)
        if self.trim_silence is not None:
            first, last = loud_part(wave, self.trim_silence)
        return wave[first:last], first

    def level(self, wave: np.ndarray) -> None:
        """Bring a wave that is not silent to the loudness or the peak."""
        if self.loudness is not None:
            wave *= np.float32(loudness_gain(wave, self.sample_rate, self.loudness))
        elif self.peak is not None:
            wave *= np.float32(10 ** (self.peak / 20) / peak(wave))


def runs(n: int, length: int) -> Iterator[slice]:
    """Slices of `length` that cover `n` samples."""
    return (slice(first, first + length) for first in range(0, n, length))


def high_pass(wave: np.ndarray, rate: int, hertz: float) -> None:
    """A causal Butterworth high-pass of order 4, begun as if the first sample had lasted for ever:
    a DC offset makes no click."""
    from scipy.signal import butter, sosfilt, sosfilt_zi

    sos = butter(ORDER, hertz, "highpass", fs=rate, output="sos")
    state = sosfilt_zi(sos) * float(wave[0])
    for run in runs(len(wave), RUN):
        wave[run], state = sosfilt(sos, wave[run], zi=state)


def loud_part(wave: np.ndarray, below: float) -> tuple[int, int]:
    """From where to where (n,) samples are not silent: librosa.effects.trim(top_db=below).

    A window is silent if its mean square lies `below` dB or more under that of the loudest one.
    """
    n, frames = len(wave), len(wave) // HOP + 1
    sums = np.zeros(frames + FRAME - 1)
    whole = wave[: n - n % HOP].reshape(-1, HOP)
    sums[2 : 2 + len(whole)] = np.einsum("nh,nh->n", whole, whole)
    if n % HOP:
        sums[2 + len(whole)] = np.square(wave[n - n % HOP :]).sum()
    power = np.convolve(sums, np.ones(FRAME), "valid")
    if not power.any():
        return 0, n  # nothing to hold it against: whoever wants sound will see that there is none
    loud = np.flatnonzero(power > power.max() * 10 ** (-below / 10))
    return int(loud[0]) * HOP, min(n, (int(loud[-1]) + 1) * HOP)


def loudness_gain(wave: np.ndarray, rate: int, target: float) -> float:
    """The factor to a loudness: at most 30 dB up or down, and no peak above full scale."""
    change = float(np.clip(target - integrated_loudness(wave, rate), -MAX_GAIN, MAX_GAIN))
    return min(10 ** (change / 20), 1 / peak(wave))


def integrated_loudness(wave: np.ndarray, rate: int) -> float:
    """Loudness of (n,) samples in LUFS by ITU-R BS.1770-4; -inf if all of it is below -70 LUFS.

    pyloudnorm's K-weighting; its own meter would hold four copies of the wave. Less than one gating
    block of 0.4 s is repeated until it fills one.
    """
    from pyloudnorm import IIRfilter
    from scipy.signal import lfilter

    step = round(rate / 10)  # blocks of 0.4 s, one every 0.1 s
    if len(wave) < 4 * step:
        wave = np.resize(wave, 4 * step)
    wave = wave[: len(wave) - len(wave) % step]
    weights = [
        IIRfilter(4.0, 2**-0.5, 1500.0, rate, "high_shelf"),
        IIRfilter(0.0, 0.5, 38.0, rate, "high_pass"),
    ]
    states = [np.zeros(2) for _ in weights]
    squares = []
    for run in runs(len(wave), 64 * step):
        heard = wave[run].astype(np.float64)
        for n, weight in enumerate(weights):
            heard, states[n] = lfilter(weight.b, weight.a, heard, zi=states[n])
        squares.append(np.square(heard).reshape(-1, step).mean(axis=1))
    power = np.convolve(np.concatenate(squares), np.full(4, 0.25), "valid")
    return gated(power)


def gated(power: np.ndarray) -> float:
    """The loudness of blocks of mean square `power`: the quiet ones, and silence, do not count."""
    loud = power[power > 10 ** ((-70 + 0.691) / 10)]
    if not len(loud):
        return -np.inf
    return float(-0.691 + 10 * np.log10(loud[loud > 0.1 * loud.mean()].mean()))
