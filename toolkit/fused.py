"""The step of an optimiser as one call of its fused kernel a group of parameters."""

from collections.abc import Callable
from functools import partial
from inspect import unwrap
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

Group = dict[str, Any]  #: one of an optimiser's param_groups
Moments = list[list[torch.Tensor]]


def spare_compiler() -> None:
    """Have torch.optim do without torch.compile, which it would load to be left out of it: with all
    that belongs to that, a second and a half of a start."""
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        plain = unwrap(getattr(torch.optim.Optimizer, name))
        plain.__dict__.setdefault("__dynamo_disable", plain)


class Part(NamedTuple):
    """A group, and what its kernel takes."""

    group: Group
    parameters: list[nn.Parameter]
    kernel: Callable[..., Any]  #: of parameters, gradients and `lr`


class FusedStep:
    """Takes the steps of an optimiser.

    torch.optim finds parameters, moments and settings anew at each step, and asks about
    torch.compile on the way: 110 us on a processor, of which the kernels of a small model take 5.
    The state stays the optimiser's own; where it has no such kernel, or a parameter no gradient, so
    does the step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self._state: object = None  # what the parts are of: loading another one replaces it
        self._parts: list[Part] = []
        self._steps = torch.zeros(0)

    def __call__(self) -> None:
        """What `optimizer.step()` does, bit for bit."""
        if self._state is not self.optimizer.state:
            self._collect()
        found = [[p.grad for p in part.parameters] for part in self._parts]
        if not found or any(g is None for gradients in found for g in gradients):
            self.optimizer.step()
            return
        with torch.no_grad():
            self._steps += 1
            for (group, parameters, kernel), gradients in zip(self._parts, found, strict=True):
                kernel(parameters, gradients, lr=group["lr"])

    def _collect(self) -> None:
        """Look the tensors up, if they are of one kind; state that is missing begins as zeros."""
        state, self._parts = self.optimizer.state, []
        groups = [group for group in self.optimizer.param_groups if group["params"]]
        every = [p for group in groups for p in group["params"]]
        bind, keys = kernel_of(self.optimizer)
        if bind is None or len({(p.device, p.dtype) for p in every}) != 1:
            return
        for p, key in product(every, keys):
            if state[p].get(key) is None:
                scalar = torch.zeros((), device=p.device)
                state[p][key] = scalar if key == "step" else torch.zeros_like(p)
        if "step" in keys:  # of all parameters in one tensor, which one kernel counts up
            self._steps = torch.stack([state[p]["step"] for p in every])
            for p, step in zip(every, self._steps, strict=True):
                state[p]["step"] = step
        self._state = state
        for group in groups:
            moments = [[state[p][key] for p in group["params"]] for key in keys]
            self._parts.append(Part(group, group["params"], bind(group, moments)))


def kernel_of(
    optimizer: torch.optim.Optimizer,
) -> tuple[Callable[[Group, Moments], Callable[..., Any]] | None, tuple[str, ...]]:
    """What binds an optimiser's fused kernel to a group and its moments, if there is such a kernel,
    and the names of the moments."""
    if not optimizer.defaults.get("fused"):
        return None, ()
    if isinstance(optimizer, torch.optim.SGD):
        return sgd, ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    return adam, ("exp_avg", "exp_avg_sq", "step")


def adam(group: Group, moments: Moments) -> Callable[..., Any]:
    """The kernel of AdamW and Adam."""
    run = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    first, second, steps = moments
    beta1, beta2 = group["betas"]
    words = {"beta1": beta1, "beta2": beta2, "amsgrad": False}
    words |= {key: group[key] for key in ("weight_decay", "eps", "maximize")}
    return lambda p, g, lr: run(p, g, first, second, [], steps, lr=lr, **words)


def sgd(group: Group, moments: Moments) -> Callable[..., Any]:
    """The kernel of SGD."""
    names = ("weight_decay", "momentum", "dampening", "nesterov", "maximize")
    words = {key: group[key] for key in names} | {"is_first_step": False}
    buffers = moments[0] if moments else []
    return partial(torch._fused_sgd_, momentum_buffer_list=buffers, **words)
