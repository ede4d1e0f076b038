"""From stored decibels to what a model sees, on the device.

What is drawn is a function of (seed, step, place in the global batch) alone, on any device: world
size, microbatch and resuming change nothing. `B` batch, `M` mel bands, `T` frames, `K` classes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from shards.index import ShardSet
from shards.loader import Batch
from shards.mel import FLOOR_DB
from shards.randomness import uniform
from toolkit.effects import filter_curves, heard, moved, offsets, spans, window
from toolkit.mixing import hearing_weights, mix
from toolkit.schema import AugmentConfig, Config

#: The key that turns each augmentation on, where it is not at its default; the place here is what
#: keeps the draws of one apart from those of another, so that none changes when others come or go.
SWITCHES = (
    "time_masks", "freq_masks", "time_roll", "time_shift", "mix", "gain_db", "eq_db", "noise_db",
    "cutouts", "crop_frames", "time_scale",
)  # fmt: skip
NOISE = 2**20  # places where a sample's noise may begin


class Transform:
    """float32, standardised: by the training part's statistics, or each sample by its own, or by
    its peak: what lies `top_db` or more below that is -2, the peak is 2.

    Shape: (B, M, T) float16, dB -> (B, 1, M, T) float32.
    """

    def __init__(
        self,
        mean: np.ndarray,
        std: np.ndarray,
        device: torch.device,
        how: str = "band",
        top_db: float = 80.0,
        crops: int = 0,
        frames: int = 0,
    ):
        self.mean = torch.from_numpy(mean).to(device)[:, None]
        self.scale = torch.from_numpy(1.0 / std).to(device)[:, None]
        self.how, self.top_db, self.crops, self.frames = how, top_db, crops, frames

    @classmethod
    def of(
        cls, config: Config, mean: np.ndarray, std: np.ndarray, device: torch.device
    ) -> "Transform":
        """What `config` asks for, by the statistics of its training part."""
        data, frames = config.data, config.augment.crop_frames
        return cls(mean, std, device, data.normalize, data.top_db, data.crops, frames)

    def __call__(self, x: torch.Tensor, whole: torch.Tensor | None = None) -> torch.Tensor:
        """`whole` is x before cells of it were hidden: a sample's own statistics are of that."""
        x = x.float()
        mean, scale = self.mean, self.scale
        whole = x if whole is None else whole
        if self.how == "peak":
            peak = whole.amax((1, 2), keepdim=True)
            return ((x - peak).clamp_(min=-self.top_db) * (4 / self.top_db) + 2)[:, None]
        if self.how == "sample":
            mean = whole.mean((1, 2), keepdim=True)
            scale = (whole - mean).square_().mean((1, 2), keepdim=True).sqrt_().clamp_(min=1e-2)
            scale.reciprocal_()
        return ((x - mean) * scale)[:, None]

    def views(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """What an evaluation averages over: all of each sample, or `crops` windows of it as
        training sees them, around frames spread evenly over those that are heard.

        Shape: (B, M, T) dB -> (B, 1, M, `frames` or T) standardised, one view after another.
        """
        frames, ones = self.frames or x.shape[2], np.ones(len(x))
        for k in range(self.crops):
            anchor = heard(x, (k + 0.5) / self.crops * ones)
            yield self(window(x.float(), anchor, frames // 2 * ones, ones, frames))
        if not self.crops:
            yield self(x)


class Sound(NamedTuple):
    """A batch in dB on its way to the model."""

    heard: torch.Tensor  #: (B, M, T) float32: moved, mixed, filtered, with noise
    seen: torch.Tensor  #: (B, M, T) float32: and with cells hidden
    y: torch.Tensor  #: (B,) class numbers or, mixed or several, (B, K) shares of classes


class Augment:
    """What training does to a batch before the model sees it.

    In this order: window and time scale, roll, shift, mix, gain and equaliser, noise; then cutouts
    and SpecAugment hide cells. `group` is how many consecutive places of the global batch mixing
    draws partners from (`model.norm_batch`: plan_batch gives every microbatch whole groups,
    whatever the launch).
    """

    def __init__(
        self,
        config: AugmentConfig,
        shard_set: ShardSet,
        transform: Transform,
        seed: int,
        group: int,
    ):
        self.config, self.transform, self.seed, self.group = config, transform, seed, group
        self.shape, self.multi_label = shard_set.shape, shard_set.is_multi_label
        if config.crop_frames:
            self.shape = shard_set.shape[0], config.crop_frames
        self.device = transform.mean.device
        if self.multi_label or config.mix != "none":
            self.table = torch.from_numpy(shard_set.label_table).float().to(self.device)
        if config.mix != "none":
            weights = hearing_weights(shard_set.info["mel"], self.shape[0])
            self.hearing = torch.from_numpy(weights).to(self.device)
        if config.noise_db:
            self.noise = normal_numbers(seed, NOISE + self.shape[0] * self.shape[1], self.device)

    def __call__(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape: (B, M, T) dB -> (B, 1, M, T) standardised, and (B,) or (B, K) targets."""
        sound = self.decibels(batch, step)
        return self.transform(sound.seen, sound.heard), sound.y

    def decibels(self, batch: Batch, step: int) -> Sound:
        """The batch augmented, in dB, not yet standardised; `batch` itself stays as it is."""
        config = self.config
        x, y = batch.x.to(torch.float32, copy=True), batch.y
        if config.crop_frames or config.time_scale > 1:
            x = self._window(x, batch, step)
        if config.time_roll or config.time_shift:
            roll, shift = (
                offsets(self._draw(name, batch, step, 1)[:, 0], places)
                for name, places in (
                    ("time_roll", min(2 * config.time_roll + 1, x.shape[2])),
                    ("time_shift", 2 * min(config.time_shift, x.shape[2]) + 1),
                )
            )
            x = moved(x, roll, shift, config.shift_padding)
        if config.mix != "none":
            x, y = self._mixed(x, batch, step)
        elif self.multi_label:
            y = self.table[y]
        if config.gain_db or config.eq_db:
            gain = (2 * self._draw("gain_db", batch, step, 1) - 1) * config.gain_db
            if config.eq_db:
                draws = self._draw("eq_db", batch, step, 2 * config.eq_bands + 1)
                gain = gain + filter_curves(draws, config, x.shape[1])
            x += self._floats(gain)[:, :, None]
        if config.noise_db:
            x.addcmul_(*self._noise(batch, step))
        if config.gain_db or config.eq_db or config.noise_db:
            x.clamp_(min=FLOOR_DB)
        return Sound(x, self._hidden(x, batch, step), y)

    def _draw(self, name: str, batch: Batch, step: int, draws: int) -> np.ndarray:
        """(B, draws) in [0, 1) for one augmentation."""
        return uniform((self.seed, step, SWITCHES.index(name)), batch.places, draws)

    def _floats(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)

    def _window(self, x: torch.Tensor, batch: Batch, step: int) -> torch.Tensor:
        """What is left of each sample in time, at its own pace."""
        frames, anchor, before = self.shape[1], torch.zeros(len(x), device=self.device), 0.0
        rate = self.config.time_scale ** (2 * self._draw("time_scale", batch, step, 1)[:, 0] - 1)
        if self.config.crop_frames:
            share, place = self._draw("crop_frames", batch, step, 2).T
            anchor, before = heard(x, share), np.floor(place * frames)
        return window(x, anchor, before + np.zeros(len(x)), rate, frames)

    def _mixed(self, x: torch.Tensor, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        from scipy.special import betaincinv

        config = self.config
        assert batch.places[0] % self.group == len(x) % self.group == 0, "plan_batch: whole groups"
        chance, ratio, scores = np.split(
            self._draw("mix", batch, step, 2 + self.group), [1, 2], axis=1
        )
        ratio = np.where(
            chance < config.mix_share, betaincinv(config.mix_alpha, config.mix_alpha, ratio), 1.0
        )
        ranks = torch.from_numpy(scores.argsort(axis=1).argsort(axis=1)).to(self.device)
        return mix(
            config.mix, x, batch.y, self.table, self._floats(ratio[:, 0]), ranks, self.hearing
        )

    def _noise(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Standard normal numbers, and each sample's standard deviation in dB."""
        draws = self._draw("noise_db", batch, step, 2)
        cells = self.shape[0] * self.shape[1]
        starts = (draws[:, 0] * NOISE).astype(np.int64).tolist()
        numbers = torch.stack([self.noise[start : start + cells] for start in starts])
        sigma = self._floats(draws[:, 1] * self.config.noise_db)
        return numbers.view(-1, *self.shape), sigma[:, None, None]

    def _hidden(self, x: torch.Tensor, batch: Batch, step: int) -> torch.Tensor:
        """Cutouts, then SpecAugment (Park et al., Interspeech 2019); a copy where there are any."""
        config, (n_mels, frames) = self.config, self.shape
        if not (config.cutouts or config.time_masks or config.freq_masks):
            return x
        seen = x.clone()
        if config.cutouts:
            draws = self._draw("cutouts", batch, step, 4 * config.cutouts)
            bands, times = np.split(draws, 2, axis=1)
            rows = spans(bands, config.cutout_bands, n_mels)
            columns = spans(times, config.cutout_frames, frames) | (config.cutout_frames == 0)
            mean = x.mean((1, 2), keepdim=True)
            for row, column in zip(rows.swapaxes(0, 1), columns.swapaxes(0, 1), strict=True):
                cells = torch.from_numpy(row[:, :, None] & column[:, None, :]).to(self.device)
                seen = torch.where(cells, mean, seen)
        for name, widest, axis in (
            ("freq_masks", config.freq_width, 1), ("time_masks", config.time_width, 2),
        ):  # fmt: skip
            masks = getattr(config, name)
            if masks:
                draws = self._draw(name, batch, step, 2 * masks)
                hidden = spans(draws, widest, x.shape[axis]).any(axis=1)
                cells = torch.from_numpy(hidden).to(self.device).unsqueeze(3 - axis)
                seen.masked_fill_(cells, config.mask_db)
        return seen


def normal_numbers(seed: int, count: int, device: torch.device) -> torch.Tensor:
    """Standard normal numbers, the same on any device. Shape: (count,) float32.

    One table serves a run, each sample's cells being a piece of it from a drawn place on: to seed a
    generator for each sample takes many times as long, and gives other numbers on a GPU.
    """
    from scipy.special import ndtri

    draws = uniform((seed, SWITCHES.index("noise_db")), np.arange(1), count)[0]
    return torch.from_numpy(ndtri(np.maximum(draws, 2.0**-54)).astype(np.float32)).to(device)
