"""A manifest of a million made-up recordings: how long its split takes, and how much memory.

    python bench/split.py [--recordings=1000000] [--runs=5] [--write]

Ten classes, a twentieth as many speakers, who reach into all classes and have from 1 to some 100
recordings. Each run is a process of its own, the three kinds in turn. --write puts the table into
bench/RESULTS.md.
"""

import argparse
import inspect
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import processor, publish

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

CLASSES = 10
KINDS = {
    "plan": "CSV read, labels, groups, folds and parts, shards planned (headers made up)",
    "assign": "5 folds and train/val/test of recordings in memory",
    "sklearn": "5 folds by a bare StratifiedGroupKFold on integers",
}


def made_up(recordings: int) -> tuple[np.ndarray, np.ndarray]:
    """(R,) class and speaker numbers; speakers are of unequal size."""
    random = np.random.default_rng(0)
    speakers = max(CLASSES, recordings // 20)
    share = random.gamma(1.5, size=speakers)
    speaker = random.choice(speakers, recordings, p=share / share.sum())
    return random.integers(0, CLASSES, recordings), speaker


def row(n: int, label: int, speaker: int) -> tuple[str, str, str]:
    """path, label and group of a recording."""
    return f"class-{label}/s{speaker:05d}/{n:07d}.wav", f"class-{label}", f"s{speaker:05d}"


def plan(labels: np.ndarray, speakers: np.ndarray) -> Callable[[], object]:
    """What `build` does with a table before it touches audio."""
    from shards import manifest, table
    from shards.audio import Probe
    from shards.build import build
    from shards.plan import make_plan, make_recipe, settle

    manifest.resolve = lambda paths, *_: ((path, "") for path in paths)
    manifest.headers = lambda _, pieces, *__: (Probe(80000, 16000, 1) for _ in pieces)  # type: ignore
    flags = inspect.signature(build).parameters.values()
    words: dict[str, Any] = {flag.name: flag.default for flag in flags}
    words |= {"folds": 5, "split": "0.7,0.15,0.15", "label_from": "label", "group_from": "group"}
    settings = settle(words)
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "list.csv"
    with open(file, "w") as lines:
        lines.write("path,label,group\n")
        for n, (label, speaker) in enumerate(zip(labels.tolist(), speakers.tolist(), strict=True)):
            lines.write(",".join(row(n, label, speaker)) + "\n")

    def run() -> object:
        recipe = make_recipe(Path(folder.name), settings)
        return make_plan(recipe, Path("out"), settings, table.read_table(file)), folder

    return run


def assign(labels: np.ndarray, speakers: np.ndarray) -> Callable[[], object]:
    """The split alone."""
    from shards.recording import Recording
    from shards.split import assign

    header: dict[str, Any] = {"frames": 80000, "sample_rate": 16000, "channels": 1}
    known: dict[str, str] = {}
    recordings = []
    for n, (label, speaker) in enumerate(zip(labels.tolist(), speakers.tolist(), strict=True)):
        path, name, group = (known.setdefault(x, x) for x in row(n, label, speaker))
        recordings.append(Recording(path=path, label=name, group=group, **header))
    return lambda: assign(recordings, 5, (0.7, 0.15, 0.15), 0)


def sklearn(labels: np.ndarray, speakers: np.ndarray) -> Callable[[], object]:
    """What scikit-learn alone takes."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    return lambda: list(splitter.split(labels, labels, speakers))


def child(kind: str, recordings: int) -> None:
    """One run, of one thread; prints seconds, seconds of the processor, and peak memory in GB."""
    run = {"plan": plan, "assign": assign, "sklearn": sklearn}[kind](*made_up(recordings))
    began, busy = time.perf_counter(), time.process_time()
    kept = run()
    took, busy = time.perf_counter() - began, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps([took, busy, peak]))
    del kept


def table(found: dict[str, list[list[float]]], recordings: int) -> list[str]:
    """Medians and ranges as Markdown."""
    import sklearn as library

    lines = [
        f"{CLASSES} classes, {recordings // 20:,} speakers across them, one process a run.",
        "",
        "| what | seconds, median (range) | of the processor, median (range) | peak GB | n |",
        "|---|---|---|---|---|",
    ]
    for kind, runs in found.items():
        took, busy, peak = zip(*runs, strict=True)
        lines.append(
            f"| {KINDS[kind]} | {spread(took)} | {spread(busy)} | {max(peak):.2f} | {len(runs)} |"
        )
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    versions += f", scikit-learn {library.__version__}"
    return [*lines, "", f"{date.today()}, {versions}; {machine()}."]


def spread(seconds: Sequence[float]) -> str:
    """`20.1 (19.8 to 21.0)`."""
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def machine() -> str:
    """The processor and its cores."""
    return f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"


def main() -> None:
    """Run all kinds in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recordings", type=int, default=10**6)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        return child(words.child, words.recordings)
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for _ in range(words.runs):
        for kind, runs in found.items():
            line = [sys.executable, __file__, f"--recordings={words.recordings}", f"--child={kind}"]
            done = subprocess.run(line, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    title = f"Split of {words.recordings:,} made-up recordings"
    publish("split", title, table(found, words.recordings), words.write)


if __name__ == "__main__":
    main()
