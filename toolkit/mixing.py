"""Two samples made one, as their sounds would add up: mixup and between-class mixing.

Stored decibels go back to power, are added there and become decibels again; labels become shares
of classes. `B` batch, `M` mel bands, `T` frames, `K` classes, `G` samples of a group.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

NEPER = math.log(10) / 10  # 10^(x / 10) = e^(NEPER x), and e^x is many times faster


def mix(
    kind: str,
    x: torch.Tensor,
    y: torch.Tensor,
    table: torch.Tensor,
    ratio: torch.Tensor,
    ranks: torch.Tensor,
    hearing: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sample with its partner; `ratio` is the share of its own label, 1 leaves it alone.

    `mixup` (Zhang et al., ICLR 2018) weighs the two powers with the ratio itself, `between_class`
    with `loudness_weight` of it; the weights of power add up to 1. `hearing` (M,) weighs bands for
    loudness, `table` (label numbers, K) holds the classes of each label.
    Shape: (B, M, T) dB, (B,), (B,), (B, G) -> (B, M, T) dB, (B, K) shares of classes.
    """
    partner = partners(y, ranks, kind == "between_class")
    power = torch.exp(x * NEPER)
    weight = ratio
    if kind == "between_class":
        level = torch.log((power * hearing[:, None]).sum(1).amax(1)) / NEPER
        weight = loudness_weight(ratio, level - level[partner])
    weight = weight[:, None, None]
    power = (power[partner].mul_(1 - weight)).addcmul_(power, weight)
    shares = table[y] * ratio[:, None] + table[y[partner]] * (1 - ratio[:, None])
    return power.log_().mul_(1 / NEPER), shares


def partners(y: torch.Tensor, ranks: torch.Tensor, between: bool) -> torch.Tensor:
    """Whom each sample is mixed with: the lowest in its row of `ranks`, a permutation of 0 .. G-1.

    Row b ranks the G samples of b's own group: fixed groups of consecutive samples, so that partner
    and sample are in one microbatch on every launch. Never the sample itself; `between` asks for
    another class, and where the group holds none, the sample stays alone, its own partner.
    Shape: (B,), (B, G) -> (B,) int64.
    """
    size = ranks.shape[1]
    places = torch.arange(len(y), device=y.device)
    first = places // size * size
    cost = ranks.clone()
    if between:
        cost += 2 * size * (y.view(-1, size)[places // size] == y[:, None])
    cost[places, places - first] = size
    return first + cost.argmin(1)


def loudness_weight(ratio: torch.Tensor, louder: torch.Tensor) -> torch.Tensor:
    """The weight of power of a sample that is `louder` dB louder than its partner.

    Between-class learning (Tokozume, Ushiku, Harada, ICLR 2018): amplitudes are mixed by
    p = 1 / (1 + 10^(louder / 20) (1 - ratio) / ratio), so that `ratio` is what is heard of each,
    and divided by sqrt(p^2 + (1 - p)^2). Shape: (B,), (B,) -> (B,).
    """
    # Powers of few numbers and of many end in other last digits: in float64 these are rounded away.
    odds = 10 ** (louder.double() / 20) * (1 - ratio) / ratio
    p = 1 / (1 + odds)
    return (p**2 / (p**2 + (1 - p) ** 2)).float()


def hearing_weights(mel: Mapping[str, Any], n_mels: int) -> np.ndarray:
    """What each band's power counts for loudness: A-weighting (IEC 61672-1) at its centre times its
    width in Hz, since bands are stored as densities; all alike where a set does not know its Hz.

    Slaney's mel scale: 200/3 Hz a mel up to 1 kHz, then 27 mel an increase of 6.4 times.
    Shape: (M,) float32, the largest 1.
    """
    if mel["fmin"] is None or mel["fmax"] is None:
        return np.ones(n_mels, np.float32)
    low, high = (
        hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000, 6.4)
        for hz in (mel["fmin"], mel["fmax"])
    )
    mels = np.linspace(low, high, n_mels + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    f2 = edges[1:-1] ** 2
    gain = 12194**2 * f2**2 / ((f2 + 20.6**2) * (f2 + 12194**2))
    gain /= np.sqrt((f2 + 107.7**2) * (f2 + 737.9**2))
    weights = gain**2 * (edges[2:] - edges[:-2])
    return (weights / weights.max()).astype(np.float32)
