"""What several families are made of. `B` batch, `C` channels, `M` mel bands, `T` frames."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import einsum
from torch import nn

from shards.errors import UserError
from toolkit.models.batchnorm import GroupedBatchNorm2d
from toolkit.models.dropout import Dropout


def conv(inputs: int, outputs: int, kernel: int, stride: int | tuple[int, int] = 1) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1, without a bias: batch norm would undo it."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def conv_blocks(
    filters: Sequence[int],
    pools: Sequence[tuple[int, int] | None],
    *,
    norm_batch: int,
    dropout: float = 0.0,
) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU, max-pool, dropout; once for each of `filters`.

    Shape: (B, 1, M, T) -> (B, filters[-1], M / p, T / q), p and q the products of the pools.
    """
    check_counts("filters", filters, len(pools))
    layers: list[nn.Module] = []
    for inputs, outputs, pool in zip([1, *filters], filters, pools, strict=False):
        layers += [conv(inputs, outputs, 3), GroupedBatchNorm2d(outputs, norm_batch), nn.ReLU()]
        layers += [nn.MaxPool2d(pool)] if pool else []
        layers += [Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


def dense(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout from each of `sizes` to the next."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), Dropout(dropout)]
    return nn.Sequential(*layers)


def classifier(width: int, n_classes: int, dropout: float) -> nn.Sequential:
    """The `head` of every model, which toolkit.models.transfer replaces."""
    return nn.Sequential(Dropout(dropout), nn.Linear(width, n_classes))


def check_counts(key: str, values: Sequence[int], count: int) -> None:
    """Raise a UserError unless `values` are `count` whole numbers of at least 1."""
    if len(values) != count or min(values) < 1:
        raise UserError(f"model.{key}={list(values)}: expected {count} numbers, each at least 1")


def area_weights(n: int, size: int, device: torch.device) -> torch.Tensor:
    """(n, size): column j takes the mean over the j-th of `size` equal stretches of n cells."""
    edges = torch.arange(size + 1, device=device) * (n / size)
    cells = torch.arange(n, device=device)[:, None]
    shared = torch.minimum(cells + 1, edges[1:]) - torch.maximum(cells, edges[:-1])
    return shared.clamp(min=0) * (size / n)


def pool_bands(x: torch.Tensor, size: int) -> torch.Tensor:
    """Any number of bands as `size` of them, each the mean over its stretch.

    A product of matrices: adaptive pooling sums in no fixed order on GPUs.
    Shape: (B, C, M, T) -> (B, C, size, T).
    """
    if x.shape[2] == size:
        return x
    weights = area_weights(x.shape[2], size, x.device).to(x.dtype)
    return einsum(x, weights, "b c m t, m s -> b c s t")


def initialise(model: nn.Module, prefix: str = "") -> None:
    """He's normal initialisation (He et al., ICCV 2015) of convolutions by their outputs, of hidden
    layers by their inputs; small weights in the head; no biases. Of an LSTM the inputs' weights are
    Glorot's, the recurrent ones orthogonal (Saxe et al., ICLR 2014), and the forget gate begins
    open (Jozefowicz et al., ICML 2015)."""
    if any(p.is_meta for p in model.parameters()):
        return  # there is nothing to fill, and torch would load its compiler for that
    for name, module in model.named_modules(prefix=prefix):
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and name.startswith("head"):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.LSTM):
            initialise_lstm(module)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def initialise_lstm(lstm: nn.LSTM) -> None:
    """Gates lie in the order input, forget, cell, output."""
    for name, p in lstm.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(p)
            if name.startswith("bias_ih"):
                nn.init.ones_(p.data.chunk(4)[1])
            continue
        fill = nn.init.xavier_uniform_ if name.startswith("weight_ih") else nn.init.orthogonal_
        for gate in p.data.chunk(4):
            fill(gate)
