"""The optimiser, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from toolkit.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov, Hutter, ICLR 2019), no decay on norms and biases."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def learning_rate(config: OptimConfig, step: int, total: int, steps_per_epoch: int) -> float:
    """The rate of optimiser step `step` (from 0) of `total`: linear warmup, then cosine to 0."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
