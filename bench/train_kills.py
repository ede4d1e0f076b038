"""Trainings killed at random instants and started again: does each end in the same weights?

    python bench/train_kills.py [--n=100] [--processes=2] [--random=0] [--shards=FOLDER]
                                [--minutes=0] [--write]

A training, on the demo's audio unless a shard set is given, is started and killed (SIGKILL) after a
random time up to that of an undisturbed one: all its processes at once or, every other time where
there are two, one of them a moment before the other. It is started again until it is done, then
another one, until there have been n kills or the --minutes, if given, are over. Then the weights,
the optimiser's state and the predictions have to be those of an undisturbed run, byte for byte, and
metrics.jsonl has to have its lines, each once, but for the times in them. Exit code 1 if not.
Processes are forked once everything is imported, so that most kills fall into the training.
"""

import importlib
import json
import math
import multiprocessing
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kills import ROOT, command, hashes
from side_by_side import arguments, processor, publish

sys.path.insert(0, str(ROOT))
main_of = importlib.import_module("train")
guard = importlib.import_module("shards.command").guard

CONFIG: dict[str, dict[str, Any]] = {
    "data": {"protocol": "kfold", "fold": 0},
    "model": {"name": "cnn_tiny", "norm_batch": 4},
    "optim": {"ema": 0.9},
    "augment": {"time_masks": 1, "time_width": 8},
    "train": {"epochs": 12, "batch_size": 16, "log_every": 1, "save_every": 2, "threads": 1},
}
RESULTS = ("best.safetensors", "predictions.csv", "model.safetensors", "optimizer.safetensors")
BUILD = ("--segment_seconds=1", "--sample_rate=8000", "--n_mels=32", "--n_fft=512", "--folds=2")


def rank(number: int, processes: int, port: int, words: list[str], log: Path) -> None:
    """The body of a process of a training: `train.py WORDS`."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    if processes > 1:
        numbers = {"RANK": number, "WORLD_SIZE": processes, "MASTER_PORT": port}
        numbers |= {f"LOCAL_{key}": numbers[key] for key in ("RANK", "WORLD_SIZE")}
        os.environ.update({key: str(value) for key, value in numbers.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    sys.argv = ["train.py", *words]
    sys.exit(guard(main_of.main))


def train(config: Path, name: str, processes: int) -> list[BaseProcess]:
    """Start a training, or start it again; its ranks."""
    words, log = [str(config), f"--run.name={name}"], config.with_name(f"{name}.log")
    fork = multiprocessing.get_context("fork").Process
    with socket.socket() as held:  # by the forks, too: nobody else gets the port
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        ranks = [fork(target=rank, args=(n, processes, port, words, log)) for n in range(processes)]
        for process in ranks:
            process.start()
    return ranks


def results(run: Path) -> tuple[dict[str, str], list[str]]:
    """What a run ended in: SHA-256 of its files, and its lines but for the times in them."""
    names = {name: digest for name, digest in hashes(run).items() if name.endswith(RESULTS)}
    lines = []
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        kept = ("kind", "part", "step", "epoch", "loss", "train_loss", "lr", "grad_norm")
        lines.append(json.dumps({key: line[key] for key in kept if key in line}))
    return names, lines


def ended(ranks: list[BaseProcess], after: float) -> bool:
    """Whether a training comes to its end in so many seconds.

    Raises:
        RuntimeError: it ended badly.
    """
    deadline = time.monotonic() + after
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    if any(codes):
        raise RuntimeError(f"exit codes {codes}")
    return None not in codes


def kill(ranks: list[BaseProcess], chance: random.Random) -> None:
    """Kill all processes, in any order, at once or with a moment between them."""
    pause = chance.choice([0.0, chance.uniform(0.0, 0.5)])
    for process in chance.sample(ranks, len(ranks)):
        process.kill()
        time.sleep(pause if process is not ranks[-1] else 0.0)
    for process in ranks:
        process.join()


def main() -> int:
    """Print a table; the exit code."""
    flags = arguments(__doc__ or "", n=100, processes=1, random=0, shards="", minutes=0)
    n, processes, chance = flags.n, flags.processes, random.Random(flags.random)
    with tempfile.TemporaryDirectory() as folder:
        audio, shards = f"{folder}/audio", flags.shards or f"{folder}/set"
        for words in [("demo", audio), ("build", audio, shards, *BUILD)] * (not flags.shards):
            subprocess.run(command(*words), cwd=ROOT, check=True, capture_output=True)
        config = Path(folder, "config.yaml")
        CONFIG["run"], CONFIG["data"]["shards"] = {"name": "x", "dir": folder}, shards
        config.write_text(json.dumps(CONFIG))  # which is YAML
        for module in ("toolkit.loop", "sklearn.metrics", "matplotlib.pyplot"):
            importlib.import_module(module)
        began = time.monotonic()
        assert ended(train(config, "whole", processes), 3600), "an undisturbed training hangs"
        took, whole = time.monotonic() - began, results(Path(folder, "whole/fold-0"))
        kills = runs = same = 0
        end = began + 60 * flags.minutes if flags.minutes else math.inf
        while kills < n and time.monotonic() < end:
            name, here = f"run-{runs}", 0
            while True:  # longer each time, so that it ends on a machine that has become slower
                disturb = kills < n and time.monotonic() < end
                after = chance.uniform(0, took * (1 + here / 4)) if disturb else 3600
                ranks = train(config, name, processes)
                if ended(ranks, after):
                    break
                kill(ranks, chance)
                kills, here = kills + 1, here + 1
            runs += 1
            same += results(Path(folder, name, "fold-0")) == whole
            print(f"{kills} kills, {runs} runs, {same} the same", file=sys.stderr, flush=True)
    head = ("processes", "kills", "runs", "the same", "undisturbed")
    cells = (processes, kills, runs, same, f"{took:.1f} s")
    lines = [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        f"| {' | '.join(map(str, cells))} |",
        "",
        f"{len(whole[1])} lines of metrics.jsonl, a checkpoint every other step.",
        f"{date.today()}, {processor()}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, torch {version('torch')}.",
    ]
    name, several = f"train-kills-{processes}", "es" * (processes > 1)
    title = f"Trainings killed at random instants, {processes} process{several}"
    words = [word for word in sys.argv[1:] if word != "--write"]
    publish(name, title, lines, flags.write, " ".join(["train_kills.py", *words]))
    return 0 if same == runs else 1


if __name__ == "__main__":
    sys.exit(main())
