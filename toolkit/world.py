"""Who and where this process is: the only reader of RANK, WORLD_SIZE and their like."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, NoReturn

from shards.errors import ShardError, UserError

if TYPE_CHECKING:  # a typo in a config is told before torch has loaded
    import torch
    from accelerate import Accelerator

LOOK_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class World:
    """The processes of one training; below it everything is a function of integers."""

    rank: int
    size: int
    device: torch.device
    precision: str = "no"  #: no | bf16 | fp16
    on_this_node: int = 1  #: processes that share the machine

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0


def speaks() -> bool:
    """Whether this process prints errors: the first of its node, before and after any set-up."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def yield_cores() -> None:
    """Have idle CPU threads sleep instead of spin; call it before torch is imported.

    OpenMP's threads spin at each barrier, and whoever shares the cores makes them spin longer: with
    one other busy process on 2 cores a training step of cnn_small took 2 to 3.4 s, asleep 0.6 s.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_memory() -> None:
    """Have glibc keep what torch frees: a step asks for the same again, and the kernel clears each
    page that it hands out. A step of cnn_small takes 4 % less of a processor's time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(parameter, 1 << 30)


def sharding() -> str | None:
    """`DeepSpeed` or `FSDP` where `accelerate launch` asks for one of them."""
    for name in ("DeepSpeed", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() == "true":
            return name
    return None


def mixed_precision(precision: str) -> str:
    """`train.precision` with `auto` replaced by what the launcher says: no | bf16 | fp16."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no") if precision == "auto" else precision


def has_gpu() -> bool:
    """Whether torch sees a device other than the processor."""
    import torch

    return torch.accelerator.is_available()


def check_sharding(name: str, precision: str) -> None:
    """Raise a UserError where DeepSpeed or FSDP would fail later, or train as something else."""
    missing = [m for m in ("deepspeed", "transformers") if not importlib.util.find_spec(m)]
    if name == "DeepSpeed" and missing:
        raise UserError(
            f"this launch asks for DeepSpeed, and {missing[0]} is not installed; "
            "pip install .[deepspeed]"
        )
    if name == "FSDP" and os.environ.get("FSDP_VERSION") != "2":
        raise UserError("FSDP needs fsdp_version: 2, as in launch/fsdp.yaml")
    if not has_gpu():
        raise UserError(f"{name} needs a GPU; without one, launch with launch/cpu_2.yaml")
    if precision == "fp16":
        raise UserError(f"train.precision=fp16 does not go with {name}; use bf16 or no")


@contextmanager
def ending_together() -> Iterator[None]:
    """Around a training: where a rank meets a broken shard, one rank says so and all of them end.

    The others would wait for it in a collective: gloo until its socket closes, NCCL for minutes. So
    the ranks' common store counts who has failed, and each looks at the count once a second.
    """
    over, told = Event(), Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY):
            if failures() and not over.is_set():
                told.set()
                leave()

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        Thread(target=watch, name="watch", daemon=True).start()
    try:
        yield
    except ShardError as error:
        over.set()
        if failures(add=1) != 1:
            leave()
        print(f"error: {error}; python -m shards verify tells more", file=sys.stderr, flush=True)
        leave()
    except BaseException:
        if told.is_set():  # a collective, because the rank that reported has left
            leave()
        raise
    finally:
        over.set()


def leave() -> NoReturn:
    """Exit code 1, whatever other threads wait for; not at once: the store may end with us."""
    time.sleep(2 * LOOK_EVERY)
    os._exit(1)


def failures(add: int = 0) -> int:
    """How many ranks have met a broken shard, counted up by `add`; of what can be known."""
    from torch.distributed import distributed_c10d as c10d

    if not c10d.is_initialized():
        return add
    try:
        return int(c10d._get_default_store().add("wavefold/failures", add))
    except RuntimeError:  # whoever held the store has gone
        return add


def start(precision: str, threads: int | None) -> tuple[Accelerator, World]:
    """Join the other processes of the launch.

    Raises:
        UserError: a precision that this device lacks, or a launch that cannot work.
    """
    import torch
    from accelerate import Accelerator

    precision = mixed_precision(precision)
    asked = sharding()
    if asked:
        check_sharding(asked, precision)
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision=fp16 needs a GPU; use bf16 or no on a CPU")
    # Without cpu=True accelerate takes the processes of a launch on a machine without a GPU for one
    # training each, all of them rank 0.
    cpu = not has_gpu()
    accelerator = Accelerator(cpu=cpu, mixed_precision="no")  # toolkit.precision sees to it
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise UserError(
            f"the launcher started {launched} processes, accelerate joined "
            f"{accelerator.num_processes}; launch with --multi_gpu, or by torchrun"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if accelerator.device.type == "cpu":
        keep_memory()
        # The launcher sets OMP_NUM_THREADS=1 when it was not told otherwise: half a laptop idle.
        torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local))
    return accelerator, World(
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        precision,
        local,
    )
