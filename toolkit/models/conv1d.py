"""Convolutions over the spectrogram, then along frequency. `B` batch, `M` mel bands, `T` frames."""

from collections.abc import Sequence

import torch
from einops import rearrange, reduce
from torch import nn

from toolkit.models.blocks import classifier, conv_blocks, dense, initialise, pool_bands


class Conv1dCNN(nn.Module):
    """Three conv blocks, mean over time, a convolution along frequency, a hidden layer.

    Shape: (B, 1, M, T) -> (B, K), M at least 8, T at least 16.
    """

    smallest = (8, 16)
    places = 16  #: along frequency, into the hidden layer: what 128 bands leave after three pools

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        *,
        filters: Sequence[int] = (32, 64, 128),
        norm_batch: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        pools = [(2, 2), (2, 2), (2, 4)]
        self.encoder = conv_blocks(filters, pools, norm_batch=norm_batch, dropout=dropout)
        self.along = nn.Sequential(nn.Conv1d(filters[-1], 64, 3, padding=1), nn.ReLU())
        self.hidden = dense([64 * self.places, 128], dropout)
        self.head = classifier(128, n_classes, 0.0)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.along(reduce(self.encoder(x), "b c m t -> b c m", "mean"))
        x = pool_bands(x[..., None], self.places)
        return self.head(self.hidden(rearrange(x, "b c m 1 -> b (c m)")))
