"""Trainings killed at random instants and started again: does each end in the same weights?

    python bench/train_kills.py --n=100 [--processes=2] [--random=0]

A training is started and killed (SIGKILL) after a random time: all its processes at once or, every
third time where there are two, one worker, upon which the launcher has to take down the rest. It is
started again until it is done, then another one, until there have been n kills. Then the weights,
the optimiser's state and the predictions have to be those of an undisturbed run, byte for byte, and
metrics.jsonl has to have its steps, each once, with the same losses. Exit code 1 if not.
"""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil
from kills import ROOT, command, hashes

CONFIG = {
    "data": {"protocol": "kfold", "fold": 0},
    "model": {"name": "cnn_tiny", "norm_batch": 4},
    "optim": {"ema": 0.9},
    "augment": {"time_masks": 1, "time_width": 8},
    "train": {"epochs": 12, "batch_size": 16, "log_every": 1, "save_every": 2, "threads": 1},
}
RESULTS = ("best.safetensors", "predictions.csv", "model.safetensors", "optimizer.safetensors")
BUILD = ("--segment_seconds=1", "--sample_rate=8000", "--n_mels=32", "--n_fft=512", "--folds=2")


def train(config: Path, name: str, processes: int) -> psutil.Popen:
    """Start a training, or start it again."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = [sys.executable, *(torchrun if processes > 1 else []), str(ROOT / "train.py")]
    return psutil.Popen(
        [*words, str(config), f"--run.name={name}"], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT,
    )  # fmt: skip


def results(run: Path) -> tuple[dict[str, str], list[str]]:
    """What a run ended in: SHA-256 of its files, and its lines but for the times in them."""
    names = {name: digest for name, digest in hashes(run).items() if name.endswith(RESULTS)}
    lines = []
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        kept = ("kind", "part", "step", "epoch", "loss", "train_loss", "lr", "grad_norm")
        lines.append(json.dumps({key: line[key] for key in kept if key in line}))
    return names, lines


def kill(launched: psutil.Popen, one_worker: bool, chance: random.Random) -> float:
    """Kill a training; seconds until nothing of it was left."""
    began = time.monotonic()
    below = launched.children(recursive=True)
    workers = [p for p in below if "train.py" in " ".join(p.cmdline())]
    victims = [chance.choice(workers)] if one_worker and workers else [launched, *below]
    for process in victims:
        process.send_signal(signal.SIGKILL)
    launched.communicate()
    _, alive = psutil.wait_procs(below, timeout=60)
    for process in alive:
        process.kill()
    return time.monotonic() - began if not alive else float("inf")


def main() -> int:
    """Print a table; the exit code."""
    flags = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
    n, processes = int(flags.get("n", 100)), int(flags.get("processes", 1))
    chance = random.Random(int(flags.get("random", 0)))
    with tempfile.TemporaryDirectory() as folder:
        audio, shards = f"{folder}/audio", f"{folder}/set"
        for words in (("demo", audio), ("build", audio, shards, *BUILD)):
            subprocess.run(command(*words), cwd=ROOT, check=True, capture_output=True)
        config = Path(folder, "config.yaml")
        CONFIG["run"], CONFIG["data"]["shards"] = {"name": "x", "dir": folder}, shards
        config.write_text(json.dumps(CONFIG))  # which is YAML
        began = time.monotonic()
        said = train(config, "whole", processes).communicate()[1]
        took, whole = time.monotonic() - began, results(Path(folder, "whole/fold-0"))
        assert len(whole[0]) >= 4, said.decode()
        kills = runs = same = 0
        longest = 0.0
        while kills < n:
            runs += 1
            name, done = f"run-{runs}", False
            while not done:
                launched = train(config, name, processes)
                try:
                    after = chance.uniform(0.3, 1.2) * took if kills < n else None
                    said = launched.communicate(timeout=after)[1]
                    assert launched.returncode == 0, said.decode()
                    done = True
                except subprocess.TimeoutExpired:
                    kills += 1
                    one = processes > 1 and kills % 3 == 0
                    longest = max(longest, kill(launched, one, chance))
            same += results(Path(folder, name, "fold-0")) == whole
            print(f"{kills} kills, {runs} runs, {same} the same", file=sys.stderr, flush=True)
    head = ("processes", "kills", "runs", "the same", "undisturbed", "gone after at most")
    cells = (processes, kills, runs, same, f"{took:.1f} s", f"{longest:.1f} s")
    print("", f"| {' | '.join(head)} |", "|---" * len(head) + "|", sep="\n")
    print(f"| {' | '.join(map(str, cells))} |\n")
    print(f"{len(whole[1])} lines of metrics.jsonl, a checkpoint every other step; Python "
          f"{platform.python_version()}, torch {version('torch')}, {os.cpu_count()} cores, "
          f"{platform.machine()}")  # fmt: skip
    return 0 if same == runs and longest < 60 else 1


if __name__ == "__main__":
    sys.exit(main())
