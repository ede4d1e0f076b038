"""Pairs of convolutions under mean pools. `B` batch, `C` channels, `M` mel bands, `T` frames."""

from collections.abc import Sequence

import torch
from einops import reduce
from torch import nn

from toolkit.models.batchnorm import GroupedBatchNorm2d
from toolkit.models.blocks import check_counts, classifier, conv, initialise


class VGG(nn.Module):
    """Four stages of two 3x3 convolutions, 2x2 mean pools between them; mean over bands, then mean
    plus maximum over time (Kong et al., PANNs, IEEE/ACM TASLP 2020, in a smaller form: half the
    width, and the first convolution is 5x5/2, since maps of full size would take most of the time).

    Shape: (B, 1, M, T) -> (B, K), M and T at least 16.
    """

    smallest = (16, 16)

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
        check_counts("filters", filters, 4)
        layers: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(zip([1, *filters], filters, strict=False)):
            first = conv(inputs, outputs, 3) if stage else conv(inputs, outputs, 5, 2)
            layers += [nn.AvgPool2d(2)] if stage else []
            for layer in (first, conv(outputs, outputs, 3)):
                layers += [layer, GroupedBatchNorm2d(outputs, norm_batch), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = classifier(filters[-1], n_classes, dropout)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = reduce(self.features(x), "b c m t -> b c t", "mean")
        return self.head(x.mean(2) + x.amax(2))
