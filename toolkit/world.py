"""Who and where this process is: the only reader of RANK, WORLD_SIZE and their like."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import UserError
from shards.process import keep_memory

if TYPE_CHECKING:  # a typo in a config is told before torch has loaded
    import torch
    from accelerate import Accelerator

GRACE = 60.0  # seconds beyond train.timeout until a collective fails: toolkit.watch says more


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


def launched() -> tuple[int, int]:
    """Rank and number of processes, as the launcher says before any set-up."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A job step as Slurm describes it to the process that runs on this node."""

    job: int  #: id, another one for each task of an array
    restart: int  #: how often the job was requeued
    node: int  #: which of its nodes this is, the first being 0
    names: list[str]  #: of all of them, in that order
    tasks: int  #: processes of the step, on all nodes
    gpus: int  #: that a process on this node sees
    address: str  #: of the first node


def allocation() -> Allocation:
    """What Slurm says of this process; a job of one node and one task outside of it."""

    def number(name: str, default: int) -> int:
        return int(os.environ.get(f"SLURM_{name}", default))

    here = os.environ.get("SLURMD_NODENAME", platform.node())
    return Allocation(
        job=number("JOB_ID", os.getpid()),
        restart=number("RESTART_COUNT", 0),
        node=number("NODEID", 0),
        names=os.environ.get("WAVEFOLD_NODES", here).split(),
        tasks=number("NTASKS", 1),
        gpus=len(visible_gpus()),
        address=os.environ.get("SLURM_LAUNCH_NODE_IPADDR", platform.node()),
    )


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, by what Slurm and the
    driver say: torch takes seconds."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [word for word in told.split(",") if word and word != "-1"]
    if Path("/dev/kfd").exists():  # AMD's, which nvidia-smi does not know
        import torch

        return [str(number) for number in range(torch.cuda.device_count())]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    there = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    return [str(number) for number in range(there)]


def slurm_job() -> dict[str, str | int | None]:
    """The job that this process is part of, an array's task as 12_3; its life, from 0, counts how
    often Slurm has started it again. `job` is None outside Slurm."""
    get = os.environ.get
    array, task = get("SLURM_ARRAY_JOB_ID"), get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else get("SLURM_JOB_ID")
    life = int(get("SLURM_RESTART_COUNT") or 0)
    return {"job": job, "life": life, "cluster": get("SLURM_CLUSTER_NAME")}


def yield_cores() -> None:
    """Have idle CPU threads sleep instead of spin; call it before torch is imported.

    OpenMP's threads spin at each barrier, and whoever shares the cores makes them spin longer: with
    one other busy process on 2 cores a training step of cnn_small took 2 to 3.4 s, asleep 0.6 s.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def under_launcher() -> bool:
    """Whether `accelerate launch` or torchrun started this process."""
    return not {"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"}.isdisjoint(os.environ)


def grace() -> float:
    """Seconds that torchrun leaves its processes between SIGTERM and SIGKILL; else infinite."""
    asked = (os.environ.get(f"{x}_SHUTDOWN_TIMEOUT") for x in ("PET", "TORCH_ELASTIC"))
    seconds = float(next(filter(None, asked), 30))
    return seconds if "TORCHELASTIC_RUN_ID" in os.environ else math.inf


def sharding() -> str | None:
    """`DeepSpeed` or `FSDP` where `accelerate launch` asks for one of them."""
    for name in ("DeepSpeed", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() == "true":
            return name
    return None


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


def start(precision: str, threads: int | None, timeout: float = 600.0) -> tuple[Accelerator, World]:
    """Join the other processes of the launch; a collective fails some time after `timeout` (s).

    Raises:
        UserError: a precision that this device lacks, or a launch that cannot work.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    if precision == "auto":
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16", "fp16"):
        raise UserError(f"the launcher asks for {precision}; use train.precision=bf16, fp16 or no")
    asked = sharding()
    if asked:
        check_sharding(asked, precision)
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision=fp16 needs a GPU; use bf16 or no on a CPU")
    # Without cpu=True accelerate takes the processes of a launch on a machine without a GPU for one
    # training each, all of them rank 0.
    cpu = not has_gpu()
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=(timeout or 1e7) + GRACE))
    # toolkit.precision sees to number formats
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[group])
    _, processes = launched()
    if accelerator.num_processes != processes:
        raise UserError(
            f"the launcher started {processes} processes, accelerate joined "
            f"{accelerator.num_processes}; launch with --multi_gpu, or by torchrun"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if accelerator.device.type == "cpu":
        keep_memory(2**30)  # a step asks for the same again
        # The launcher sets OMP_NUM_THREADS=1 when it was not told otherwise: half a laptop idle.
        torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local))
    rank, device = accelerator.process_index, accelerator.device
    return accelerator, World(rank, processes, device, precision, local)
