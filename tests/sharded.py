"""Trainings where accelerate takes processes on the CPU for GPUs: DeepSpeed and FSDP over gloo.

accelerate knows neither without a GPU, and a training refuses; here both are told otherwise.
"""

import importlib

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from toolkit import world


def set_device(state: PartialState) -> None:
    state.device = torch.device("cpu")


def pretend() -> None:
    world.has_gpu = lambda: True
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = set_device
    if world.sharding() == "DeepSpeed":
        # It would compile code of its own for shared memory: a minute, and a compiler.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
