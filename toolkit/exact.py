"""train.exact: what the same bits on 1, 2, 4, ... processes need of a launch, set and checked."""

import os
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils import deterministic

from shards.errors import UserError
from toolkit.schema import TrainConfig
from toolkit.world import World, sharding


def prepare(train: TrainConfig, world: World) -> None:
    """With `train.exact`: deterministic kernels from here on; call it before the first of them.

    Raises:
        UserError: this launch cannot give the bits of the others.
    """
    if not train.exact:
        return
    check_launch(train, world)
    # Read when the first product is computed, and when torch.compile is loaded.
    os.environ |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TORCHINDUCTOR_DETERMINISTIC": "1"}
    torch.set_num_threads(train.threads or 1)
    # As use_deterministic_algorithms, which loads torch.compile: two seconds.
    torch.set_deterministic_debug_mode("error")
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    found = gather_object([kernels(world)])
    for rank, theirs in enumerate(found):
        for what, value in found[0].items():
            if theirs[what] != value:
                raise UserError(
                    f"train.exact=true: {what} is {value} on rank 0 and {theirs[what]} on rank "
                    f"{rank}; processes that differ give other bits"
                )


def check_launch(train: TrainConfig, world: World) -> None:
    """A UserError where the leaves of the tree cannot be shared out among the processes."""
    if sharding():
        raise UserError(f"train.exact=true does not go with {sharding()}; launch/gpu_n.yaml does")
    leaves = train.batch_size // (train.microbatch or train.batch_size)
    if leaves % world.size:  # of a power of two
        near = 1 << min(leaves.bit_length(), world.size.bit_length()) - 1
        raise UserError(
            f"train.exact=true: {leaves} microbatches of train.microbatch={train.microbatch} do "
            f"not split evenly over {world.size} processes; nearest: {near}"
        )


def kernels(world: World) -> dict[str, Any]:
    """What decides the last bits of a result, beside its operands."""
    processor = torch.backends.cpu.get_cpu_capability()
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "none"
    threads = torch.get_num_threads()
    return {"torch": torch.__version__, "processor": processor, "GPU": gpu, "threads": threads}
