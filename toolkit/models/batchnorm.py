"""Batch norm that no launch changes.

Statistics are taken over fixed groups of the global batch ("ghost batches": Hoffer, Hubara, Soudry,
Train longer, generalize better, NeurIPS 2017), and the running statistics are merged over
micro-steps and ranks once a step. `G` groups of `S` samples: B = G * S.
"""

import torch
import torch.nn.functional as F
from torch import nn


class GroupedBatchNorm2d(nn.Module):
    """Batch norm over each group of `group_size` consecutive samples of a microbatch.

    Shape: (B, C, H, W) -> (B, C, H, W), B a multiple of `group_size` in training. Of float16 or
    bfloat16 torch's kernels compute in float32, statistics included, and round the result once.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    step_mean: torch.Tensor
    step_var: torch.Tensor

    def __init__(self, channels: int, group_size: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.group_size, self.momentum, self.eps = group_size, momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        # Of the last forward: not part of the state between steps.
        self.register_buffer("step_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("step_var", torch.zeros(channels), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        assert x.shape[0] % self.group_size == 0, "plan_batch gives whole groups"
        # With momentum 1/k the k-th call leaves the plain mean of k statistics behind.
        groups = [
            F.batch_norm(
                group, self.step_mean, self.step_var, self.weight, self.bias, True, 1 / k, self.eps
            )
            for k, group in enumerate(x.split(self.group_size), 1)
        ]
        return groups[0] if len(groups) == 1 else torch.cat(groups)


def grouped_norms(model: nn.Module) -> list[GroupedBatchNorm2d]:
    """The layers of `model` that keep statistics of this kind, but for frozen ones."""
    norms = (m for m in model.modules() if isinstance(m, GroupedBatchNorm2d))
    return [norm for norm in norms if norm.weight.requires_grad]


def last_statistics(norms: list[GroupedBatchNorm2d]) -> list[torch.Tensor]:
    """Mean and variance over the groups of the last forward, as they lie in the layers: two (C,) a
    layer."""
    return [s for norm in norms for s in (norm.step_mean, norm.step_var)]


@torch.no_grad()
def fold_in(
    norms: list[GroupedBatchNorm2d], means: list[torch.Tensor], share: float | None = None
) -> None:
    """Fold the statistics of one optimiser step, means over its forwards, into the running ones:
    `share` of them, or the layers' momentum. Every rank has seen as many groups, so the mean over
    ranks is the mean over groups."""
    running = [s for norm in norms for s in (norm.running_mean, norm.running_var)]
    torch._foreach_lerp_(running, means, norms[0].momentum if share is None else share)
