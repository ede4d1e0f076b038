"""Trainings that take turns: each in processes of its own, going on for some steps when told to."""

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from time import process_time
from typing import Any

#: Trains without an end; calls what it is given as `pause` at the beginning of each step.
Train = Callable[..., None]


class Paced:
    """A contestant that takes `steps` steps a turn: a process for each of `cores`, with `threads`
    threads. Several are joined as torchrun joins them, or have nothing to do with each other."""

    def __init__(
        self, train: Train, steps: int, *cores: list[int], threads: int = 1, joined: bool = True
    ):
        context, self.steps = multiprocessing.get_context("spawn"), steps
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pipes, self.processes = [], []
        # Read when torch is loaded, which unpickling `train` does; as train.py has it.
        os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        for rank, mine in enumerate(cores):
            here, there = context.Pipe()
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(cores)}
            world |= {"LOCAL_WORLD_SIZE": len(cores), "MASTER_PORT": port}
            world = world if joined and len(cores) > 1 else {}
            process = context.Process(target=begin, args=(train, there, mine, threads, world))
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
            there.close()
        for pipe in self.pipes:
            pipe.recv()

    def __call__(self) -> float:
        """A turn; CPU seconds of its processes."""
        for pipe in self.pipes:
            pipe.send(self.steps)
        return sum(pipe.recv() for pipe in self.pipes)

    def stop(self) -> None:
        """End the training where it stands."""
        for process in self.processes:
            process.kill()
            process.join()


def begin(train: Train, pipe: Any, cores: list[int], threads: int, world: dict[str, int]) -> None:
    """The body of a process."""
    os.sched_setaffinity(0, cores)
    os.environ |= {name: str(value) for name, value in world.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    import torch

    torch.set_num_threads(threads)
    left, began = 0, process_time()

    def pause() -> None:
        nonlocal left, began
        if not left:
            pipe.send(process_time() - began)
            left, began = pipe.recv(), process_time()
        left -= 1

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        train(pause=pause)
