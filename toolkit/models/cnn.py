"""Convolutional nets. `B` batch, `C` channels, `M` mel bands, `T` frames, `K` classes."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import reduce
from torch import nn

from toolkit.models.batchnorm import GroupedBatchNorm2d
from toolkit.models.blocks import (
    check_counts,
    classifier,
    conv,
    conv_blocks,
    initialise,
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
