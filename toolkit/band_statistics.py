"""What a forest sees of a segment: statistics of each band, and of the spectrum's shape.

`P` segments, `M` mel bands, `T` frames, `F` features.
"""

import numpy as np

#: Of each band over time, in dB; a delta is the difference of neighbouring frames.
BAND = ("mean", "deviation", "10 %", "50 %", "90 %", "delta size", "delta deviation")
#: Of each frame, then its mean, its deviation and its mean change over time.
SHAPE = ("level", "centroid", "spread", "roll-off", "flatness", "flux")
OVER_TIME = ("mean", "deviation", "delta size")


def feature_names(n_mels: int) -> list[str]:
    """The F names, in the order of `pooled`: `mean of band 0`, ..., `centroid, deviation`."""
    bands = [f"{name} of band {band}" for name in BAND for band in range(n_mels)]
    return bands + [f"{shape}, {how}" for how in OVER_TIME for shape in SHAPE]


def pooled(x: np.ndarray) -> np.ndarray:
    """The features of segments in dB. Shape: (P, M, T) -> (P, F) float32."""
    x = np.asarray(x, np.float32)
    delta = np.diff(x, axis=2, prepend=x[:, :, :1])
    low, middle, high = np.quantile(x, (0.1, 0.5, 0.9), axis=2)
    bands = [x.mean(2), x.std(2), low, middle, high, np.abs(delta).mean(2), delta.std(2)]
    shape = spectral_shape(x)
    change = np.abs(np.diff(shape, axis=2, prepend=shape[:, :, :1])).mean(2)
    found = [*bands, shape.mean(2), shape.std(2), change]
    return np.concatenate(found, axis=1).astype(np.float32)


def spectral_shape(x: np.ndarray) -> np.ndarray:
    """SHAPE of each frame: level in dB, the next three in bands, flatness and flux within 0 .. 1.

    Flatness is the geometric over the arithmetic mean of power, flux half the distance of
    neighbouring frames' distributions of power over bands. Shape: (P, M, T) dB -> (P, 6, T).
    """
    loudest = x.max(1, keepdims=True).astype(np.float64)
    power = 10.0 ** ((x - loudest) / 10)  # of converted sets, whose values may be no dB, finite too
    total = power.sum(1, keepdims=True)
    share, band = power / total, np.arange(x.shape[1])[:, None]
    centroid = (share * band).sum(1, keepdims=True)
    spread = np.sqrt((share * (band - centroid) ** 2).sum(1, keepdims=True))
    rolloff = (share.cumsum(1) < 0.85).sum(1, keepdims=True)
    flatness = 10.0 ** ((x.mean(1, keepdims=True) - loudest) / 10) / (total / x.shape[1])
    flux = np.abs(np.diff(share, axis=2, prepend=share[:, :, :1])).sum(1, keepdims=True) / 2
    shape = [loudest + 10 * np.log10(total), centroid, spread, rolloff, flatness, flux]
    return np.concatenate(shape, axis=1)
