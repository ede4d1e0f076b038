"""Vision transformers (Dosovitskiy et al., ICLR 2021) over patches of spectrograms.

`B` batch, `M` mel bands, `T` frames, `D` width, `N` patches, h x w of them, `K` classes.
"""

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from shards.errors import UserError
from toolkit.models.batchnorm import GroupedBatchNorm2d
from toolkit.models.blocks import classifier, conv
from toolkit.models.dropout import Dropout, uniform

Pair = tuple[int, int]


def drop_path(x: torch.Tensor, share: float) -> torch.Tensor:
    """Stochastic depth (Huang et al., ECCV 2016): a `share` of the samples set to 0, by a mask, so
    that every parameter has a gradient. Shape: (B, ...) -> (B, ...)."""
    kept = uniform(x, *[1] * (x.ndim - 1)) >= share
    return x * kept / (1 - share)


class Block(nn.Module):
    """Pre-norm attention and MLP. Shape: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float, drop_path: float):
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Sequential(nn.Linear(dim, dim), Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(), Dropout(dropout),
            nn.Linear(mlp_dim, dim), Dropout(dropout),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._maybe(self._attend(self.norm1(x)))
        return x + self._maybe(self.mlp(self.norm2(x)))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))

    def _maybe(self, x: torch.Tensor) -> torch.Tensor:
        return drop_path(x, self.drop_path) if self.training and self.drop_path else x


class Patches(nn.Module):
    """Patches that may overlap, each through LayerNorm, Linear, LayerNorm.

    Shape: (B, 1, M, T), whole steps of patches -> (B, D, h, w).
    """

    def __init__(self, patch: Pair, step: Pair, dim: int):
        super().__init__()
        self.patch, self.step = patch, step
        cells = patch[0] * patch[1]
        self.project = nn.Sequential(nn.LayerNorm(cells), nn.Linear(cells, dim), nn.LayerNorm(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for axis, size, step in zip((2, 3), self.patch, self.step, strict=True):
            x = x.unfold(axis, size, step)
        return rearrange(
            self.project(rearrange(x, "b 1 h w p q -> b h w (p q)")), "b h w d -> b d h w"
        )


def halving_stem(patch: Pair, dim: int, norm_batch: int) -> nn.Sequential:
    """3x3 convolutions, each halving the size until a patch is a cell (Xiao et al., Early
    convolutions help transformers see better, NeurIPS 2021). Shape: (B, 1, M, T) -> (B, D, h, w).
    """
    if any(size & (size - 1) for size in patch):
        raise UserError(f"model.patch={list(patch)}: model.conv_stem takes powers of two")
    halvings = [size.bit_length() - 1 for size in patch]
    count = max(halvings)
    widths = [1, *(max(8, dim >> (count - 1 - i)) for i in range(count))]
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        stride = (1 + (i < halvings[0]), 1 + (i < halvings[1]))
        layers += [conv(inputs, outputs, 3, stride), GroupedBatchNorm2d(outputs, norm_batch)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, 1))


def resize(positions: torch.Tensor, grid: Pair) -> torch.Tensor:
    """Learned positions for another number of patches. Shape: (D, h, w) -> (D, *grid)."""
    if positions.shape[1:] == grid:
        return positions
    return F.interpolate(positions[None], grid, mode="bicubic", align_corners=False)[0]


class ViT(nn.Module):
    """Patches, a class token, learned positions, pre-norm blocks, a linear head.

    Bands and frames are padded by 0, the mean of what is standardised, up to whole patches; where
    there are more or fewer patches than in `shape`, positions are interpolated.

    Shape: (B, 1, M, T) -> (B, K), any M and T.
    """

    smallest = (1, 1)

    def __init__(
        self,
        n_classes: int,
        shape: Pair,
        *,
        dim: int,
        depth: int,
        heads: int,
        norm_batch: int,
        mlp_dim: int | None = None,
        patch: int | list[int] = 16,
        overlap: int | list[int] = 0,
        conv_stem: bool = False,
        dropout: float = 0.0,
        embed_dropout: float = 0.0,
        patch_dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.patch = pair("patch", patch, 1)
        lost = pair("overlap", overlap, 0)
        if dim % heads:
            raise UserError(f"model.dim={dim}: not a multiple of model.heads={heads}")
        if lost[0] >= self.patch[0] or lost[1] >= self.patch[1]:
            raise UserError(f"model.overlap={overlap}: at least one cell below model.patch={patch}")
        if conv_stem and any(lost):
            raise UserError(f"model.overlap={overlap}: not with model.conv_stem, which overlaps")
        self.step = (self.patch[0] - lost[0], self.patch[1] - lost[1])
        self.embed = (
            halving_stem(self.patch, dim, norm_batch)
            if conv_stem
            else Patches(self.patch, self.step, dim)
        )
        self.cls_token = nn.Parameter(torch.zeros(dim))
        self.pos_embed = nn.Parameter(torch.zeros(dim, *self.grid(shape)))
        self.embed_dropout, self.patch_dropout = Dropout(embed_dropout), patch_dropout
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.Sequential(
            *(Block(dim, heads, mlp_dim or 4 * dim, dropout, rate) for rate in rates)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = classifier(dim, n_classes, dropout)
        initialise(self)

    def grid(self, shape: Pair) -> Pair:
        """How many patches, along M and along T, cover spectrograms of `shape`."""
        rows, columns = (
            -(-max(n - p, 0) // s) + 1 for n, p, s in zip(shape, self.patch, self.step, strict=True)
        )
        return rows, columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = self.grid((x.shape[2], x.shape[3]))
        missing = [
            (n - 1) * s + p - size
            for n, s, p, size in zip(grid, self.step, self.patch, x.shape[2:], strict=True)
        ]
        x = self.embed(F.pad(x, (0, missing[1], 0, missing[0])))
        x = rearrange(x + resize(self.pos_embed, grid), "b d h w -> b (h w) d")
        if self.training and self.patch_dropout:
            x = drop_patches(x, self.patch_dropout)
        x = torch.cat([repeat(self.cls_token, "d -> b 1 d", b=x.shape[0]).to(x.dtype), x], dim=1)
        x = self.norm(self.blocks(self.embed_dropout(x)))
        return self.head(x[:, 0])


def pair(key: str, value: int | list[int], least: int) -> Pair:
    """One number for both axes, or [bands, frames]."""
    both = [value, value] if isinstance(value, int) else value
    if len(both) != 2 or min(both) < least:
        raise UserError(f"model.{key}={value}: one number or [bands, frames], at least {least}")
    return both[0], both[1]


def drop_patches(x: torch.Tensor, share: float) -> torch.Tensor:
    """A random `share` of each sample's patches left out, which also saves their time (PaSST:
    Koutini et al., Interspeech 2022). Shape: (B, N, D) -> (B, N', D)."""
    kept = max(1, round(x.shape[1] * (1 - share)))
    chosen = uniform(x, x.shape[1]).argsort(dim=1)[:, :kept]
    return x.gather(1, repeat(chosen, "b n -> b n d", d=x.shape[2]))


def initialise(model: nn.Module) -> None:
    """Positions, class token and linear layers by a normal distribution of standard deviation 0.02
    cut at two of them, no biases; convolutions of a stem by He's."""
    if any(p.is_meta for p in model.parameters()):
        return  # there is nothing to fill, and torch would load its compiler for that
    for name, p in model.named_parameters():
        if name in ("cls_token", "pos_embed"):
            nn.init.trunc_normal_(p, std=0.02, a=-0.04, b=0.04)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


vit_small = partial(ViT, dim=192, depth=6, heads=3)
vit_medium = partial(ViT, dim=256, depth=6, heads=4)
vit_large = partial(ViT, dim=384, depth=6, heads=6)
