"""One launcher a node: what `srun` starts once on each node of a job, and what it turns into."""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from shards.command import Commands
from shards.command import main as run_command
from shards.errors import UserError
from toolkit.config import load
from toolkit.world import Allocation, allocation

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = {"ddp": None, "fsdp": "fsdp", **{f"zero{n}": f"deepspeed_zero{n}" for n in (1, 2, 3)}}


def folder(config: str, *settings: str) -> None:
    """Print the folder of a training, a setting a word: what train.py would write to."""
    print(load([config, *settings]).folder())


def start(
    config: str,
    *settings: str,
    nodes: int = 1,
    gpus: int = 0,
    strategy: str = "ddp",
    timeout: float = 180.0,
) -> None:
    """Train CONFIG on --nodes nodes of --gpus GPUs each, as one of the launchers that srun starts.

    Waits --timeout seconds for the others. Without GPUs each node has one process.
    """
    from launch.rendezvous import meet

    here = allocation()
    check(here, nodes, gpus)
    facts = {"nodes": nodes, "gpus": gpus, "tasks": here.tasks, "strategy": strategy}
    port = meet(here, {**facts, "host": here.names[here.node]}, timeout)
    processes = nodes * max(1, gpus)
    print(
        f"node {here.node} of {nodes}, {here.names[here.node]}: ranks "
        f"{here.node * max(1, gpus)} to {(here.node + 1) * max(1, gpus) - 1} of {processes}, "
        f"{gpus} GPUs, {here.address}:{port}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    file = launch_file(nodes, gpus, strategy)
    os.environ.update(environment(file, nodes, gpus))
    words = launcher(file, here, nodes, gpus, port)
    settings = *settings, *(["--train.resume=auto"] if began(config, settings, here.job) else [])
    command = [sys.executable, *words, str(ROOT / "train.py"), config, *settings]
    os.execv(sys.executable, command)


def check(here: Allocation, nodes: int, gpus: int) -> None:
    """Raise a UserError unless this is what was asked for: a launcher a node, and its GPUs."""
    if len(here.names) != nodes or here.tasks != nodes:
        raise UserError(
            f"asked for {nodes} nodes with a launcher each, and Slurm gave {len(here.names)} "
            f"nodes and {here.tasks} tasks; say --nodes={nodes} --ntasks-per-node=1 to sbatch"
        )
    if gpus and here.gpus != gpus:
        raise UserError(
            f"{here.names[here.node]}: asked for {gpus} GPUs a node, and {here.gpus} are to be "
            f"seen; say --gpus-per-node={gpus} to sbatch, or look at the node with nvidia-smi"
        )


def began(config: str, settings: Sequence[str], job: int) -> bool:
    """Whether an earlier life of this job began what lies there: train.resume=never is done."""
    note = load([config, *settings]).folder() / "environment.json"
    try:
        return json.loads(note.read_text())["slurm"]["SLURM_JOB_ID"] == str(job)
    except (OSError, ValueError, KeyError):
        return False


def launch_file(nodes: int, gpus: int, strategy: str) -> Path:
    """The file in launch/ for so many nodes, GPUs a node, and how the model is spread over them."""
    if strategy not in STRATEGIES:
        raise UserError(f"--strategy={strategy}: one of {', '.join(STRATEGIES)}")
    name = STRATEGIES[strategy]
    if name and nodes * gpus < 2:
        raise UserError(f"--strategy={strategy} spreads a model over GPUs; ask for two or more")
    if not name:
        several = "cpu_2" if gpus == 0 else "multinode"
        one = {0: "cpu", 1: "gpu_1"}.get(gpus, "gpu_n")
        name = several if nodes > 1 else one
    return ROOT / "launch" / f"{name}.yaml"


def environment(file: Path, nodes: int, gpus: int) -> dict[str, str]:
    """Variables that the processes need beside those that the launcher sets."""
    if gpus == 0:  # those of the node are for others
        return {"CUDA_VISIBLE_DEVICES": "-1", "ACCELERATE_USE_CPU": "true"}
    if nodes * gpus == 1:
        return {"ACCELERATE_MIXED_PRECISION": yaml.safe_load(file.read_text())["mixed_precision"]}
    return {}


def launcher(file: Path, here: Allocation, nodes: int, gpus: int, port: int) -> list[str]:
    """What stands between python and train.py; nothing where there is but one process.

    `accelerate launch` would die of its signal there, and nobody wait for the checkpoint.
    """
    processes = nodes * max(1, gpus)
    if processes == 1:
        return []
    words = ["-m", "accelerate.commands.launch", "-q", f"--config_file={file}"]
    words += [f"--num_processes={processes}", f"--num_machines={nodes}"]
    words += [f"--machine_rank={here.node}", f"--main_process_port={port}"]
    words += [f"--main_process_ip={here.address}"] if nodes > 1 else []
    words += ["--rdzv_backend=static"] if nodes > 1 else []
    if nodes > 1 and "deepspeed" in file.name:
        words += ["--deepspeed_multinode_launcher=standard"]
    return words


COMMANDS: Commands = {"folder": folder, "start": start}


main = partial(run_command, "python -m launch.node", COMMANDS)

if __name__ == "__main__":
    raise SystemExit(main())
