"""What augmentation does to each sample by itself, as arithmetic on numbers drawn in [0, 1).

`B` batch, `M` mel bands, `T` frames.
"""

import numpy as np
import torch

from shards.mel import FLOOR_DB
from toolkit.schema import AugmentConfig

HEARD_DB = 40.0


def offsets(draws: np.ndarray, places: int) -> np.ndarray:
    """Whole steps, uniform over as many `places` around 0. Shape: (B,) in [0, 1) -> (B,) int64."""
    return np.floor(draws * places).astype(np.int64) - places // 2


def moved(x: torch.Tensor, roll: np.ndarray, shift: np.ndarray, padding: str) -> torch.Tensor:
    """Each sample rolled later in time by `roll` frames, then shifted later by `shift`.

    A shift is a random crop of the padded sample: `silence` pads with the stored floor, -100 dB,
    `reflect` as np.pad does. Shape: (B, M, T), (B,), (B,) -> (B, M, T).
    """
    frames = x.shape[2]
    source = np.arange(frames) - shift[:, None]
    outside = (source < 0) | (source >= frames)
    if padding == "reflect":
        period = max(1, 2 * (frames - 1))
        source = np.minimum(source % period, -source % period)
    source = torch.from_numpy((source - roll[:, None]) % frames).to(x.device)
    x = x.gather(2, source[:, None].expand(x.shape))
    if padding == "silence" and outside.any():
        x.masked_fill_(torch.from_numpy(outside).to(x.device)[:, None], FLOOR_DB)
    return x


def heard(x: torch.Tensor, share: np.ndarray) -> torch.Tensor:
    """The frame at `share` of all that are heard: whose loudest cell is not over 40 dB below the
    sample's. Shape: (B, M, T), (B,) in [0, 1) -> (B,) int64.
    """
    level = x.amax(1)
    count = (level >= level.amax(1, keepdim=True) - HEARD_DB).cumsum(1)
    wanted = torch.from_numpy(share).to(x.device) * count[:, -1]
    return torch.searchsorted(count, wanted.long()[:, None] + 1)[:, 0]


def window(
    x: torch.Tensor, anchor: torch.Tensor, before: np.ndarray, rate: np.ndarray, frames: int
) -> torch.Tensor:
    """`frames` frames of each sample, `before` of them ahead of its frame `anchor`.

    The sample is read at `rate` frames a frame, in dB on lines between them, and goes round.
    Shape: (B, M, T), (B,), (B,), (B,) -> (B, M, frames).
    """
    steps = torch.from_numpy((np.arange(frames) - before[:, None]) * rate[:, None]).to(x.device)
    at = anchor[:, None] + steps
    first = at.floor()
    left, right = (
        x.gather(2, (place.long() % x.shape[2])[:, None].expand(-1, x.shape[1], -1))
        for place in (first, first + 1)
    )
    return torch.lerp(left, right, (at - first).to(x.dtype)[:, None])


def filter_curves(draws: np.ndarray, config: AugmentConfig, n_mels: int) -> np.ndarray:
    """A random equaliser a sample: FilterAugment (Nam, Kim, Park, ICASSP 2022), in dB.

    2 .. `eq_bands` bands of random edges, none narrower than `eq_width` where so many fit; gains
    uniform in -eq_db .. eq_db, of whole bands (`step`) or of the edges, lines between (`linear`).
    Shape: (B, 2 * eq_bands + 1) in [0, 1) -> (B, M).
    """
    most = config.eq_bands
    count, inner, gains = np.split(draws, [1, most], axis=1)
    bands = np.minimum(2 + np.floor(count * (most - 1)), n_mels)
    width = np.minimum(config.eq_width, n_mels // bands)
    gains = (2 * gains - 1) * config.eq_db
    # An edge that is not needed goes to the end and leaves an empty band there.
    needed = np.arange(1, most)
    inner = np.sort(np.where(needed < bands, inner, 1.0), axis=1)
    edges = np.minimum(np.floor(inner * (n_mels - bands * width)) + needed * width, n_mels)
    cells = np.arange(n_mels)
    if config.eq_kind == "step":
        return np.take_along_axis(gains, (cells[:, None] >= edges[:, None]).sum(axis=2), axis=1)
    nodes = np.pad(edges, ((0, 0), (1, 1)), constant_values=((0, 0), (0, n_mels)))
    return np.stack([np.interp(cells, *row) for row in zip(nodes, gains, strict=True)])


def spans(draws: np.ndarray, widest: int, length: int) -> np.ndarray:
    """Random spans on an axis: widths uniform in 0 .. `widest`, starts uniform where they fit.

    Shape: (B, 2 * spans) in [0, 1) -> (B, spans, length) bool.
    """
    widths = np.floor(draws[:, 0::2] * (min(widest, length) + 1))
    starts = np.floor(draws[:, 1::2] * (length - widths + 1))
    cells = np.arange(length)
    return (cells >= starts[..., None]) & (cells < (starts + widths)[..., None])
