"""Convolutional nets. `B` batch, `C` channels, `M` mel bands, `T` frames, `K` classes."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import nn

from toolkit.models.batchnorm import GroupedBatchNorm2d
from toolkit.models.blocks import (
    check_counts,
    classifier,
    conv,
    conv_blocks,
    dense,
    initialise,
    pool_bands,
)

EXPANSION = 4  #: a bottleneck's outputs, times its width


class Residual(nn.Module):
    """Convolutions beside a shortcut (He et al., Deep residual learning, CVPR 2016), as which the
    block begins: 3x3 and 3x3, or a bottleneck of 1x1, 3x3 and 1x1 to four times the channels."""

    def __init__(self, inputs: int, width: int, stride: int, norm_batch: int, bottleneck: bool):
        super().__init__()
        norm = partial(GroupedBatchNorm2d, group_size=norm_batch)
        outputs = width * EXPANSION if bottleneck else width
        if bottleneck:
            sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        else:
            sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        norms = [norm(size[1]) for size in sizes]
        nn.init.zeros_(norms[-1].weight)
        layers: list[nn.Module] = []
        for size, one in zip(sizes, norms, strict=True):
            layers += [conv(*size), one, nn.ReLU()]
        self.branch = nn.Sequential(*layers[:-1])
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class AudioCNN(nn.Module):
    """ResNet-like: 7x7/2 stem, 3x3/2 max-pool, four stages of residual blocks, mean, linear.

    Shape: (B, 1, M, T) -> (B, K), M and T at least 32.
    """

    smallest = (32, 32)

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        *,
        filters: Sequence[int],
        blocks: Sequence[int],
        bottleneck: bool,
        norm_batch: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_counts("filters", filters, 4)
        check_counts("blocks", blocks, 4)
        stem = filters[0]
        self.stem = nn.Sequential(
            conv(1, stem, 7, 2),
            GroupedBatchNorm2d(stem, norm_batch),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        stages: list[nn.Module] = []
        inputs = stem
        for stage, (width, count) in enumerate(zip(filters, blocks, strict=True)):
            for i in range(count):
                stride = 2 if i == 0 and stage > 0 else 1
                stages.append(Residual(inputs, width, stride, norm_batch, bottleneck))
                inputs = width * EXPANSION if bottleneck else width
        self.stages = nn.Sequential(*stages)
        self.head = classifier(inputs, n_classes, dropout)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages(self.stem(x))
        return self.head(reduce(x, "b c m t -> b c", "mean"))


# Multiples of 16, and more of the 5 M weights late, where maps are small: at 128 x 157 a training
# step takes 0.6 of the time that (48, 96, 192, 320) needs for as many weights.
cnn_small = partial(AudioCNN, filters=(32, 64, 160, 352), blocks=(2, 2, 2, 2), bottleneck=False)
cnn_medium = partial(AudioCNN, filters=(48, 96, 192, 352), blocks=(2, 3, 4, 3), bottleneck=True)
cnn_large = partial(AudioCNN, filters=(64, 128, 256, 512), blocks=(3, 4, 9, 3), bottleneck=True)


class TinyCNN(nn.Module):
    """Three convolutions, two pools, global average.

    Shape: (B, 1, M, T) -> (B, K), M and T at least 4.
    """

    smallest = (4, 4)

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        *,
        filters: Sequence[int] = (16, 32, 64),
        norm_batch: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.features = conv_blocks(filters, [(2, 2), (2, 2), None], norm_batch=norm_batch)
        self.head = classifier(filters[-1], n_classes, dropout)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(reduce(self.features(x), "b c m t -> b c", "mean"))


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
