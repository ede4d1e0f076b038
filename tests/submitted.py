"""Runs of configs/demo.yaml on a throw-away Slurm: how they are submitted, and what they leave.

Starting torch costs each job four seconds of a processor, so several stories are told at a time,
each by a thread that submits, interferes and waits; a test asks for the end of one. A training that
is to be interfered with suspends itself at its first checkpoint: it costs nothing meanwhile, and
cannot end too soon. Jobs draw no pictures, but for those that get no environment of `Runs`.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster, throwaway, until, why_not
from processes import PLAIN, ROOT

from shards.build import build
from shards.sources.demo import synthesize

MARKS = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_not() is not None, reason=f"no Slurm here: {why_not()}"),
]
AT_A_TIME = 5  # stories: more would wait for each other
DIR = "runs of 100% #1"
#: As in the Makefile; the config says the same.
SETTINGS: dict[str, Any] = {
    "segment_seconds": 2.0, "sample_rate": 16000, "n_mels": 64, "n_fft": 1024,
    "hop_length": 256, "group_from": r"^(site-\d)",
}  # fmt: skip
Story = Callable[["Runs"], Any]
Told = Callable[[Story], Any]


class Runs:
    """The runs of a module in `folder`, of the demo's recordings dealt into so many `folds`."""

    def __init__(self, cluster: Cluster, folder: Path, folds: int):
        self.cluster, self.folder = cluster, folder
        synthesize(folder / "audio folder", per_class=6, seconds=2.0)
        build(str(folder / "audio folder"), str(folder / "set"), folds=folds, workers=1, **SETTINGS)
        self.env = {**cluster.env, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PLAIN}:{ROOT}"}
        # as if submitted from inside another job
        self.env |= {"SLURM_JOB_ID": "99", "SLURM_CPUS_PER_TASK": "77", "SBATCH_PARTITION": "none"}
        self.config = [str(ROOT / "configs/demo.yaml"), "--data.shards=set", "--train.threads=1"]

    def command(self, module: str, *words: str, code: int = 0) -> str:
        """What a command of ours prints."""
        command = [sys.executable, "-m", f"launch.{module}", *words]
        done = subprocess.run(
            command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, name: str, *words: str, **flags: Any) -> dict[str, str]:
        """Submit a run, by default of two cores a task and 20 minutes; ids of its jobs."""
        flags = {"gpus": 0, "cpus_per_gpu": 2, "time": 20} | flags
        named = [f"--{flag}={value}" for flag, value in flags.items()]
        if not any("--nodelist" in word or "--exclude" in word for word in words):
            named += ["--sbatch=--exclude=n[3-5]"]  # those are taken and killed
        run = [f"--run.dir={DIR}", f"--run.name={name}"]
        told = self.command("submit", *self.config, *run, *named, *words)
        assert f"python -m launch.status '{DIR}/{name}'" in told, told
        return dict(re.findall(r"^(\w+) +(\d+) ", told, re.M))

    def run(self, name: str) -> Path:
        return self.folder / DIR / name

    def fold(self, name: str, fold: int = 0) -> Path:
        return self.run(name) / f"fold-{fold}"

    def begun(self, folder: Path) -> psutil.Process:
        """The process that trains in `folder`, once it is suspended."""
        saved = folder / "checkpoints/latest"
        until(saved.exists, 200, f"{saved}")
        trainer = psutil.Process(json.loads((folder / "lock.json").read_text())["pid"])
        until(lambda: trainer.status() == psutil.STATUS_STOPPED, 20, f"{trainer} stops")
        return trainer


def lives(folder: Path) -> list[list[str]]:
    """Time, task, node, begin or end, and of what."""
    return [line.split() for line in (folder / "lives.txt").open()]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "best.safetensors").read_bytes()).hexdigest()


@contextmanager
def submitted(folder: Path, folds: int) -> Iterator[Runs]:
    """Runs in `folder`, on a cluster of their own."""
    with throwaway() as cluster:
        yield Runs(cluster, folder, folds)


@contextmanager
def telling(runs: Runs, stories: Iterable[Story]) -> Iterator[Told]:
    """Begins all of `stories`, as many at a time as may be; what it yields waits for one to end."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        ends: dict[Story, Future[Any]] = {story: pool.submit(story, runs) for story in stories}
        try:
            yield lambda story: ends[story].result()
        finally:
            runs.cluster.stop()
