"""Convolutions, then Dense layers. `B` batch, `C` channels, `M` mel bands, `T` frames."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import nn

from toolkit.models.blocks import classifier, conv_blocks, dense, initialise, pool_bands


class SpectrogramCNN(nn.Module):
    """Four conv blocks, then Dense layers of 512 and 128.

    A Dense layer on all that the blocks leave of 128 x 1292 would have 84 M weights, and more for
    longer segments; on the means over 4 x 4 equal parts of the map it has 2.1 M for any size.

    Shape: (B, 1, M, T) -> (B, K), M and T at least 16.
    """

    smallest = (16, 16)
    parts = 4  #: of the map, along frequency and along time

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        *,
        filters: Sequence[int] = (32, 64, 128, 256),
        norm_batch: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.features = conv_blocks(filters, [(2, 2)] * 4, norm_batch=norm_batch)
        self.hidden = dense([filters[-1] * self.parts**2, 512, 128], dropout)
        self.head = classifier(128, n_classes, 0.0)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pool_bands(self.features(x), self.parts)
        x = pool_bands(rearrange(x, "b c m t -> b c t m"), self.parts)
        return self.head(self.hidden(rearrange(x, "b c t m -> b (c t m)")))
