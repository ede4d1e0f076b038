"""From stored decibels to what a model sees, on the device; chance is (seed, step, place) alone.

`B` batch, `M` mel bands, `T` frames.
"""

import numpy as np
import torch

from shards.loader import Batch
from shards.randomness import uniform
from toolkit.config import AugmentConfig


class Transform:
    """float32, masks (training only), standardised.

    Shape: (B, M, T) float16, dB -> (B, 1, M, T) float32.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray, device: torch.device):
        self.mean = torch.from_numpy(mean).to(device)[:, None]
        self.scale = torch.from_numpy(1.0 / std).to(device)[:, None]

    def __call__(
        self, x: torch.Tensor, hidden: torch.Tensor | None = None, mask_db: float = 0.0
    ) -> torch.Tensor:
        x = x.float()
        if hidden is not None:
            x = x.masked_fill(hidden, mask_db)
        return ((x - self.mean) * self.scale)[:, None]


def spec_augment(
    config: AugmentConfig, batch: Batch, words: tuple[int, ...]
) -> torch.Tensor | None:
    """Which cells SpecAugment hides (Park et al., Interspeech 2019), or None where it is off.

    Each mask's width is uniform in 0 .. its widest, its start uniform where it fits. A function of
    `words` (seed, step) and the places in the global batch alone. Shape: (B, M, T) bool.
    """
    masks = config.freq_masks + config.time_masks
    if masks == 0:
        return None
    n_mels, frames = batch.x.shape[1:]
    draws = uniform(words, batch.places, 2 * masks)
    bands, times = np.split(draws, [2 * config.freq_masks], axis=1)
    rows = spans(bands, config.freq_width, n_mels)
    columns = spans(times, config.time_width, frames)
    return torch.from_numpy(rows[:, :, None] | columns[:, None, :]).to(batch.x.device)


def spans(draws: np.ndarray, widest: int, length: int) -> np.ndarray:
    """The union of random spans on an axis. Shape: (B, 2 * masks) in [0, 1) -> (B, length) bool."""
    widths = np.floor(draws[:, 0::2] * (min(widest, length) + 1))
    starts = np.floor(draws[:, 1::2] * (length - widths + 1))
    cells = np.arange(length)
    inside = (cells >= starts[..., None]) & (cells < (starts + widths)[..., None])
    return inside.any(axis=1)
