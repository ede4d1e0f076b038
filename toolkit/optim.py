"""The optimiser, the learning rate as a pure function of the step, and the average of weights."""

import math
import re
from collections.abc import Mapping

import torch
from torch import nn

from toolkit.fused import spare_compiler
from toolkit.schema import OptimConfig
from toolkit.world import sharding

#: Parameters of two dimensions or more that do not decay, by the last words of their names.
EMBEDDING = re.compile(
    r"(^|[._])(cls|tokens?|pos_embed|pos(ition)?_embeddings?|position_bias_table)(\.weight)?$"
)


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: not to norms and biases (one dimension), nor to positions and
    tokens such as `cls_token` and `pos_embed`."""
    return parameter.ndim > 1 and not EMBEDDING.search(name)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov, Hutter, ICLR 2019), Adam (Kingma, Ba, ICLR 2015), or SGD with Nesterov's
    momentum (Sutskever et al., ICML 2013)."""
    spare_compiler()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if decays(name, p)]
    free = [p for name, p in named if not decays(name, p)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    # For complex numbers there is no such kernel.
    fused = config.fused and all(p.is_floating_point() for _, p in named)
    if config.name == "sgd":
        fused = fused and sharding() != "FSDP"  # nor one of SGD for tensors that are spread
        momentum = config.momentum
        return torch.optim.SGD(groups, config.lr, momentum, nesterov=momentum > 0, fused=fused)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.name]
    return kind(groups, config.lr, (config.beta1, config.beta2), fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Have the next step taken at `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate(
    config: OptimConfig, step: int, total: int, steps_per_epoch: int, drops: int = 0
) -> float:
    """The rate of optimiser step `step` (from 0) of `total`, after `drops` of the plateau's rule.

    A linear warmup, then what `optim.schedule` says; onecycle (Smith, Topin, 2018; cosine in both
    phases, momentum left alone) rises and falls over all steps instead.
    """
    if config.schedule == "onecycle":
        return config.lr * one_cycle(config, step, total)
    warmup = round(config.warmup_epochs * steps_per_epoch)
    ramp = min(1.0, (step + 1) / (warmup + 1))
    progress = max(0.0, (step - warmup) / max(1, total - warmup))
    factor = 1.0  # constant
    if config.schedule == "cosine":
        factor = cosine(1.0, config.end_factor, progress)
    elif config.schedule == "linear":
        factor = 1.0 + (config.end_factor - 1.0) * progress
    elif config.schedule == "plateau":
        factor = max(config.plateau_factor**drops, config.end_factor)
    return config.lr * ramp * factor


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a wave, `progress` in 0..1."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def one_cycle(config: OptimConfig, step: int, total: int) -> float:
    """The factor of onecycle at `step` of `total`; the peak need not be at a whole step."""
    peak, last = config.pct_start * total - 1, total - 1
    if step < peak:
        return cosine(config.start_factor, 1.0, step / peak)
    return cosine(1.0, config.end_factor, (step - peak) / (last - peak))


class Average:
    """An exponential moving average of weights, float32, beside the tensors that it is of.

    The decay warms up, min(decay, (1 + t) / (10 + t)) at step t = 1, 2, ..., so that the first
    weights are soon forgotten. Floating buffers (the running statistics of batch norm) are averaged
    like the weights that they belong to; other buffers are copied. All of it is element by element:
    of weights that are spread over ranks each one averages its own part.
    """

    @torch.no_grad()
    def __init__(self, tensors: Mapping[str, torch.Tensor], decay: float):
        """Begin with `tensors`, by name, in which a model is trained."""
        self.tensors, self.decay = {name: t.clone() for name, t in tensors.items()}, decay
        self._pairs = [(self.tensors[name], t) for name, t in tensors.items()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1."""
        moving = [pair for pair in self._pairs if pair[0].is_floating_point()]
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([mine for mine, _ in moving], [other for _, other in moving], weight)
        for mine, other in self._pairs:
            if not mine.is_floating_point():
                mine.copy_(other)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the weights as they are."""
        for mine, other in self._pairs:
            mine.copy_(other)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average, in place."""
        for mine, other in self._pairs:
            held = mine.clone()
            mine.copy_(other)
            other.copy_(held)
