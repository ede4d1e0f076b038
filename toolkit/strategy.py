"""How weights and the optimiser's state lie on the processes: whole on each (plain), or in
parts (DeepSpeed's ZeRO 1 to 3, FSDP).

Everybody else sees whole tensors by the name of their parameter, so that what one strategy saves
every other one loads, exactly.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from shards.order import BatchPlan
from toolkit import zero
from toolkit.fused import FusedStep
from toolkit.optim import Average
from toolkit.precision import autocast
from toolkit.schema import OptimConfig
from toolkit.world import World, sharding
from toolkit.zero import Tensors

log = logging.getLogger(__name__)


class Strategy:
    """A model and its optimiser as this launch spreads them; every rank calls every method."""

    def __init__(
        self,
        accelerator: Accelerator,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: BatchPlan,
        config: OptimConfig,
    ):
        self.accelerator = accelerator
        self.zero = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        self._raw = optimizer
        accelerator.gradient_accumulation_steps = 1  # micro-steps are the plan's, not a launcher's
        autocast(model, world)
        if self.zero:
            # DeepSpeed calls what torch has renamed, and torch says so at every step.
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
            accelerator.gradient_accumulation_steps = plan.accumulation
            zero.fill(accelerator.deepspeed_plugin.deepspeed_config, plan, config.grad_clip)
        if sharding():
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        else:  # no DDP: toolkit.reduction sums the gradients, with all else that ranks share
            self.model, self.optimizer = model.to(world.device), optimizer
            for tensor in model.state_dict().values() if world.size > 1 else ():
                torch.distributed.broadcast(tensor, 0)
        self.module = bare(self.model)
        self.average = Average(own(self.module), config.ema) if config.ema else None
        self.whole = [] if sharding() else list(self.module.parameters())  #: not spread
        self._kernel = FusedStep(optimizer)
        self._before: Callable[[], None] = lambda: None
        if self.zero:
            backward = self.model.backward  # the loop has divided by the micro-steps already
            self.model.backward = lambda loss: backward(loss, scale_wrt_gas=False)

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a spread model: gradients travel, and DeepSpeed steps, in
        the last one only."""
        self.accelerator.sync_gradients = last
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` to those of the parameters."""
        if self.whole:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def clip(self, limit: float) -> float:
        """Scale the gradient down to `limit`, where it is longer; its norm before."""
        if not self.whole:
            return float(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))
        gradients = [p.grad for p in self.whole if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        found = float(norm)
        if not found < limit:  # else all would be scaled by 1
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))  # as nn.utils.clip_grad_norm_
        return found

    def step(self) -> None:
        """The optimiser's step."""
        if self.whole:
            self._before()
            self._kernel()
        else:
            self.optimizer.step()

    def forget_gradients(self) -> None:
        """Before the first forward of a step."""
        if not self.whole:
            self.optimizer.zero_grad()
        for p in self.whole:
            p.grad = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within: what is evaluated, and kept as the best: where there is an average of the
        weights, that in their place. What raises there ends the training."""
        self._swap()
        yield
        self._swap()

    def _swap(self) -> None:
        if self.average:
            self._before()  # a checkpoint may be copying them
            reshard(self.module)
            with zero.apart(self.model.optimizer) if self.zero else nullcontext():
                self.average.swap()

    def tensors(self) -> dict[str, Tensors]:
        """All that a checkpoint holds; only rank 0 can count on having it."""
        groups = {"model": self.weights(), "optimizer": self.moments()}
        if self.average and sharding():
            with self.averaged():
                groups["ema"] = self.weights()
        elif self.average:
            groups["ema"] = self.average.tensors
        return groups

    def weights(self) -> Tensors:
        """The whole weights, which only the optimiser's step changes, and copies of the buffers."""
        lasting = dict(self.module.named_parameters())
        if sharding():
            tensors = self.accelerator.get_state_dict(self.model) or {}
        else:
            tensors = self.module.state_dict()
        return {name: t if name in lasting else t.clone() for name, t in tensors.items()}

    def before_step(self, action: Callable[[], None]) -> None:
        """Have every step of the optimiser begin with `action`."""
        self._before = action
        self._raw.register_step_pre_hook(lambda *_: action())

    def load_weights(self, tensors: Tensors) -> None:
        """Take over whole weights and buffers."""
        if self.accelerator.is_fsdp2:
            from torch.distributed.checkpoint.state_dict import (
                StateDictOptions,
                set_model_state_dict,
            )

            options = StateDictOptions(full_state_dict=True)
            set_model_state_dict(self.model, tensors, options=options)
        elif self.zero:
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(self.module.parameters()), modifier_rank=0):
                self.module.load_state_dict(tensors)
            self.model.optimizer.refresh_fp32_params()
        else:
            self.module.load_state_dict(tensors)

    def load_average(self, tensors: Tensors) -> None:
        """Take over a whole average by way of the weights, which are to be loaded next."""
        if self.average:
            self.load_weights(tensors)
            self.average.restart()

    def moments(self) -> Tensors:
        """The optimiser's whole state, as `features.0.weight.exp_avg`; its step may change it."""
        if self.zero:
            return zero.moments(sharded_parameters(self.module), self.model.optimizer)
        return {
            f"{name}.{key}": value.full_tensor().cpu() if spread(value) else value
            for name, p in sharded_parameters(self.module)
            for key, value in self.optimizer.state.get(p, {}).items()
        }

    def load_moments(self, tensors: Tensors) -> None:
        """Take over the optimiser's whole state; says so where it does not fit and starts anew."""
        if not tensors and not self._raw.defaults.get("momentum", True):
            return  # SGD without it has no state
        state: dict[str, Tensors] = {}
        for title, value in tensors.items():
            name, _, key = title.rpartition(".")
            state.setdefault(name, {})[key] = value
        parameters = dict(sharded_parameters(self.module))
        if state.keys() != parameters.keys() or (self.zero and zero.offloads(self.model.optimizer)):
            log.warning("the optimiser's state of this checkpoint does not fit; it starts anew")
        elif self.zero:
            zero.load_moments(parameters.items(), self.model.optimizer, state)
        else:
            names = {p: name for name, p in parameters.items()}
            order = [p for group in self.optimizer.param_groups for p in group["params"]]
            placed = {i: place(state[names[p]], p) for i, p in enumerate(order)}
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": placed, "param_groups": groups})


def bare(model: nn.Module) -> nn.Module:
    """The model out of DeepSpeed's wrapper; `unwrap_model` imports DeepSpeed to look."""
    return getattr(model, "module", model)


def reshard(module: nn.Module) -> None:
    """Have FSDP give up the whole weights that a forward leaves."""
    part: Any
    for part in module.modules() if sharding() == "FSDP" else ():
        if hasattr(part, "reshard"):
            part.reshard()


@torch.no_grad()
def own(module: nn.Module) -> Tensors:
    """What this rank holds of weights and buffers, by name; to change it is to train."""
    reshard(module)
    tensors = module.state_dict(keep_vars=True)
    tensors = {name: t.to_local() if spread(t) else t for name, t in tensors.items()}
    return {name: getattr(t, "ds_tensor", t) for name, t in tensors.items()}


def sharded_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What is trained, by name, as the optimiser holds it: FSDP shows it whole after a forward."""
    reshard(module)
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def spread(tensor: object) -> bool:
    """Whether it is a DTensor of FSDP's; to ask for the class by name takes a second to import."""
    return hasattr(tensor, "full_tensor")


def place(entry: Tensors, p: Any) -> Tensors:
    """One parameter's state, in parts where the parameter is."""

    def placed(value: torch.Tensor) -> torch.Tensor:
        if value.shape != p.shape:
            return value
        if not spread(p):  # in the parameter's own layout, such as channels_last
            return torch.empty_like(p, dtype=value.dtype).copy_(value)
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(p.device), p.device_mesh, p.placements)

    return {key: placed(value) for key, value in entry.items()}
