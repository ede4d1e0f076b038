"""Convolutions, a recurrent net over time, attention. `B` batch, `M` mel bands, `T` frames."""

from collections.abc import Sequence

import torch
from einops import einsum, rearrange
from torch import nn

from toolkit.models.blocks import classifier, conv_blocks, initialise, pool_bands


class CRNN(nn.Module):
    """Three conv blocks, a bidirectional LSTM of 128 over time, attention pooling (Zhang et al.,
    Attention based convolutional recurrent neural network for environmental sound classification,
    Neurocomputing 2021, in a smaller form).

    Shape: (B, 1, M, T) -> (B, K), M and T at least 8.
    """

    smallest = (8, 8)
    bands = 4  #: of what the blocks leave, into the LSTM

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        *,
        filters: Sequence[int] = (32, 64, 128),
        dim: int = 128,
        norm_batch: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        pools = [(2, 2)] * 3
        self.features = conv_blocks(filters, pools, norm_batch=norm_batch, dropout=dropout)
        self.lstm = nn.LSTM(filters[-1] * self.bands, dim, batch_first=True, bidirectional=True)
        self.score = nn.Sequential(nn.Linear(2 * dim, dim), nn.Tanh(), nn.Linear(dim, 1))
        self.head = classifier(2 * dim, n_classes, dropout)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, attention = self._listen(x)
        return self.head(einsum(states, attention.to(states.dtype), "b t d, b t -> b d"))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """How much each stretch of 8 frames counts. Shape: (B, 1, M, T) -> (B, T // 8), sums 1."""
        return self._listen(x)[1]

    def _listen(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = pool_bands(self.features(x), self.bands)
        states, _ = self.lstm(rearrange(x, "b c m t -> b t (c m)"))
        scores = rearrange(self.score(states), "b t 1 -> b t")
        return states, scores.float().softmax(dim=1)
