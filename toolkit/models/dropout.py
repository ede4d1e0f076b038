"""What training leaves out, drawn by place: a function of (seed, step, place in the global batch).

A forward has whole groups of `model.norm_batch` places, which no launch divides (plan_batch), and
each group has a generator of its own: neither the number of processes nor the microbatch changes
what its samples lose. torch.compile knows no generators: what it compiles draws by the microbatch.
"""

from collections.abc import Sequence

import torch
from torch import nn

#: The keys of the config's section `model` that ask for it.
KEYS = ("dropout", "embed_dropout", "patch_dropout", "drop_path")

_groups: list[torch.Generator] = []  # of the forward that is to come


def seed(keys: Sequence[int], device: torch.device) -> None:
    """Begin a forward of as many groups as there are `keys`, one after the other."""
    if len(_groups) != len(keys) or _groups[0].device.type != device.type:
        _groups[:] = [torch.Generator(device) for _ in keys]
    for generator, key in zip(_groups, keys, strict=True):
        generator.manual_seed(key)


def uniform(x: torch.Tensor, *shape: int) -> torch.Tensor:
    """Numbers in [0, 1) for the samples of `x` (B, ...). Shape: (B, *shape) float32."""
    if torch.compiler.is_compiling():
        return torch.rand(len(x), *shape, device=x.device)
    found = torch.empty(len(x), *shape, device=x.device)
    for part, generator in parts(found):
        part.uniform_(generator=generator)
    return found


def parts(x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Generator | None]]:
    """The groups of `x` (B, ...) and their generators; all of it, where nobody has seeded them."""
    if not _groups or len(x) % len(_groups):
        return [(x, None)]
    return list(zip(x.chunk(len(_groups)), _groups, strict=True))


class Dropout(nn.Dropout):
    """nn.Dropout, by place. Shape: (B, ...) -> (B, ...)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.p) or torch.compiler.is_compiling():
            return super().forward(x)
        kept, mask = 1 - self.p, torch.empty_like(x)
        for part, generator in parts(mask):
            part.bernoulli_(kept, generator=generator)
        return x * mask.div_(kept)
