"""Convolutional nets. `B` batch, `C` channels, `M` mel bands, `T` frames, `K` classes."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import reduce
from torch import nn

from toolkit.models.batchnorm import GroupedBatchNorm2d


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1, without a bias: batch norm would undo it."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def initialise(model: nn.Module) -> None:
    """He's normal initialisation (He et al., ICCV 2015), small classifier weights."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., Deep residual learning, CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm_batch: int):
        super().__init__()
        self.conv1, self.norm1 = (
            conv(inputs, outputs, 3, stride),
            GroupedBatchNorm2d(outputs, norm_batch),
        )
        self.conv2, self.norm2 = conv(outputs, outputs, 3), GroupedBatchNorm2d(outputs, norm_batch)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(
                conv(inputs, outputs, 1, stride), GroupedBatchNorm2d(outputs, norm_batch)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class AudioCNN(nn.Module):
    """ResNet-like: 7x7/2 stem, 3x3/2 max-pool, four stages of basic blocks, average pool, linear.

    Shape: (B, 1, M, T) -> (B, K), M and T at least 32.
    """

    smallest = (32, 32)

    def __init__(
        self,
        n_classes: int,
        *,
        filters: Sequence[int],
        blocks: Sequence[int],
        norm_batch: int,
        dropout: float,
    ):
        super().__init__()
        stem = filters[0]
        self.stem = nn.Sequential(
            conv(1, stem, 7, 2),
            GroupedBatchNorm2d(stem, norm_batch),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        widths = [stem, *filters]
        self.stages = nn.Sequential(
            *(
                BasicBlock(
                    widths[stage] if i == 0 else widths[stage + 1],
                    widths[stage + 1],
                    2 if i == 0 and stage > 0 else 1,
                    norm_batch,
                )
                for stage, count in enumerate(blocks)
                for i in range(count)
            )
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(filters[-1], n_classes))
        initialise(self)
        for module in self.modules():
            if isinstance(module, BasicBlock):  # each block begins as its shortcut
                nn.init.zeros_(module.norm2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages(self.stem(x))
        return self.head(reduce(x, "b c m t -> b c", "mean"))


# Multiples of 16, and more of the 5 M weights late, where maps are small: at 128 x 157 a training
# step takes 0.6 of the time that (48, 96, 192, 320) needs for as many weights.
cnn_small = partial(AudioCNN, filters=(32, 64, 160, 352), blocks=(2, 2, 2, 2))


class TinyCNN(nn.Module):
    """Three convolutions, two pools, global average.

    Shape: (B, 1, M, T) -> (B, K), M and T at least 4.
    """

    smallest = (4, 4)

    def __init__(self, n_classes: int, *, norm_batch: int, dropout: float):
        super().__init__()
        norm = partial(GroupedBatchNorm2d, group_size=norm_batch)
        self.features = nn.Sequential(
            conv(1, 16, 3), norm(16), nn.ReLU(), nn.MaxPool2d(2),
            conv(16, 32, 3), norm(32), nn.ReLU(), nn.MaxPool2d(2),
            conv(32, 64, 3), norm(64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(64, n_classes))
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(reduce(self.features(x), "b c m t -> b c", "mean"))
