"""How the arithmetic is done: number formats, memory layout, kernels, compiled or not."""

import logging
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.errors import UserError
from toolkit.schema import TrainConfig
from toolkit.world import World, sharding

log = logging.getLogger(__name__)

LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}
IN_A_ROW = 50  # overflows: the loss scale has fallen from 2^16 to 2^-34


def autocast(model: nn.Module, world: World) -> None:
    """Have `model` compute in `world.precision` what stands it, from weights that stay float32."""
    if world.precision != "no":
        lower = torch.autocast(world.device.type, LOWER[world.precision])
        model.forward = lower(model.forward)


def arrange(model: nn.Module, train: TrainConfig, world: World) -> nn.Module:
    """`model` in the memory layout, and torch with the kernels, that `train` asks for.

    Raises:
        UserError: a layout that this launch does not take.
    """
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if train.tf32 else "highest")
        cudnn: Any = torch.backends.cudnn
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if train.tf32 else "ieee"
        cudnn.benchmark = train.cudnn_benchmark and not train.exact
    last = train.channels_last
    if last == "auto":  # tensor cores take it; on a processor: bench/precision.py
        last = not sharding() and (world.device.type == "cpu" or world.precision != "no")
    if last and sharding():  # which flatten weights as they lie
        raise UserError(f"train.channels_last=true does not go with {sharding()}; use auto")
    return model.to(memory_format=torch.channels_last) if last else model


def compiled(model: nn.Module, train: TrainConfig, world: World) -> Callable[..., Any]:
    """What to call in training: `model`, or its compiled form over the same tensors.

    Microbatches have one shape, so nothing is compiled twice.

    Raises:
        UserError: this launch, or this machine, cannot compile.
    """
    if train.compile == "off":
        return model
    asked = f"train.compile={train.compile}"
    if sharding():
        raise UserError(f"{asked} does not go with {sharding()}; use train.compile=off")
    missing = missing_for_compiling(world.device.type)
    if missing:
        raise UserError(f"{asked} needs {missing}; install it, or use train.compile=off")
    if world.is_main:
        log.info("%s: the first step takes a minute or so", asked)
    mode = None if train.compile == "default" else train.compile
    return torch.compile(model, mode=mode, dynamic=False)


def missing_for_compiling(device: str) -> str | None:
    """What torch.compile would miss here: kernels are C++ on a processor, launched from C on a
    GPU."""
    variable, names = ("CXX", ["g++"]) if device == "cpu" else ("CC", ["gcc", "clang"])
    names = [os.environ[variable]] if variable in os.environ else names
    if not any(map(shutil.which, names)):
        return f"a compiler, and there is no {' or '.join(names)} here"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.exists() else f"{header}, part of Python's development files"


class LossScale:
    """fp16's factor on the loss, without which small gradients vanish (Micikevicius et al., Mixed
    precision training, ICLR 2018), and how many steps it has cost. In other precisions: nothing.

    Where a gradient overflows the step is skipped, on all ranks, and the factor halved.
    """

    def __init__(self, world: World):
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=world.precision == "fp16")
        self.skipped = 0  #: steps
        self._in_a_row = 0

    def decide(self, norm: float) -> bool:
        """Whether the step whose unscaled gradient has `norm` is to be skipped; then adapt.

        Raises:
            UserError: nothing but overflows, at whatever scale.
        """
        if not self.scaler.is_enabled():
            return False
        skip = not abs(norm) < torch.inf  # the sum of squares of what is not finite is not either
        self.scaler.update()
        self.skipped += skip
        self._in_a_row = self._in_a_row + 1 if skip else 0
        if self._in_a_row >= IN_A_ROW:
            raise UserError(
                f"train.precision=fp16: the gradients of the last {IN_A_ROW} steps have overflowed "
                "at ever smaller loss scales; use train.precision=bf16, or a lower optim.lr"
            )
        return skip

    def figures(self) -> dict[str, float]:
        """For metrics.jsonl: the factor of the next step, and the steps skipped since step 1."""
        if not self.scaler.is_enabled():
            return {}
        return {"loss_scale": self.scaler.get_scale(), "skipped": self.skipped}

    def state(self) -> dict[str, Any]:
        """All of it, for state.json."""
        return {"loss_scale": self.scaler.state_dict(), "skipped": self.skipped}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse; a run that was begun in another precision has no factor yet."""
        self.skipped = state.get("skipped", 0)
        if state.get("loss_scale"):
            self.scaler.load_state_dict(state["loss_scale"])
