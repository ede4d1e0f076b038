"""Real processes for tests: a launch as users make it, and forked gloo ranks for sweeps."""

import importlib
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from queue import Empty
from typing import Any

from shards.command import guard
from toolkit.world import speaks
from train import main

ROOT = Path(__file__).parent.parent
PLAIN = Path(__file__).parent / "plain"  #: in PYTHONPATH: no pictures
#: What a training imports on its way: once in the parent, or else for 0.9 s in each fork.
ON_THE_WAY = ("sklearn.metrics", "matplotlib.backends.backend_svg", "jinja2")
ON_THE_WAY += ("toolkit.attention", "toolkit.curves")


def train_command(world_size: int, *words: str) -> list[str]:
    """`train.py WORDS` alone, or under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    return [sys.executable, *(torchrun if world_size > 1 else []), str(ROOT / "train.py"), *words]


def environment() -> dict[str, str]:
    """The caller's environment with one thread a process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def train(world_size: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a training to its end."""
    command = train_command(world_size, *words)
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)


def held_port() -> socket.socket:
    """A port of this machine that nobody else gets while the socket, or a fork's, is open; torch's
    store can listen there all the same, since it reuses addresses."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def on_ranks(world_size: int, function: Callable[[], Any], timeout: float = 100) -> list[Any]:
    """What `function` returns on each of `world_size` forked processes joined by gloo; None of
    those that were killed, if all were."""
    return fork(world_size, function, lambda: None, timeout)[0]


def fork(
    world_size: int, function: Callable[[], Any], meanwhile: Callable[[], Any], timeout: float
) -> tuple[list[Any], list[int | None]]:
    """What `function` returns on each rank, and exit codes. `meanwhile` is called here."""
    state = sys.modules.get("accelerate.state")
    begun = state is not None and state.PartialState._shared_state
    assert not begun, "an earlier test began a world in this process; ranks would inherit it"
    for module in ON_THE_WAY:
        importlib.import_module(module)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with held_port() as held:
        port = str(held.getsockname()[1])
        ranks = [
            context.Process(target=one_rank, args=(rank, world_size, port, function, results))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
    found, deadline = {}, time.monotonic() + timeout
    try:
        meanwhile()
        while len(found) < world_size and time.monotonic() < deadline:
            over = not any(process.is_alive() for process in ranks)
            try:
                rank, result = results.get(timeout=0.1)
                found[rank] = result
            except Empty:
                if over:
                    break
    finally:
        for process in ranks:
            process.join(10)
            process.kill()
    return [found.get(rank) for rank in range(world_size)], [rank.exitcode for rank in ranks]


def one_rank(
    rank: int, world_size: int, port: str, function: Callable[[], Any], results: Any
) -> None:
    """The body of a forked process; an exception travels as its text."""
    if world_size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size),
            LOCAL_WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )  # fmt: skip
    try:
        results.put((rank, function()))
    except Exception as error:
        results.put((rank, repr(error)))


def forked_ranks(
    world_size: int, *words: str, meanwhile: Callable[[], Any] = lambda: None
) -> list[tuple[int | None, str]]:
    """Exit code and errors of `train.py WORDS` on forked processes, which have imported all."""
    with ExitStack() as files:
        errors = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(world_size)]

        def body() -> None:
            os.dup2(errors[int(os.environ.get("RANK", 0))].fileno(), 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
            sys.argv = ["train.py", *words]
            sys.exit(guard(main, speaks=speaks()))

        codes = fork(world_size, body, meanwhile, timeout=100)[1]
        for file in errors:
            file.seek(0)
        return [(code, file.read()) for code, file in zip(codes, errors, strict=True)]


def forked(*words: str) -> tuple[int | None, str]:
    """The same on one."""
    return forked_ranks(1, *words)[0]
