"""A set of ten million made-up segments: what its index and manifest cost to write and to open.

    python bench/large.py [--segments=10000000] [--runs=5] [--write]

Ten segments a recording, two recordings a speaker, ten classes, five folds; shards of 256 MB that
are holes. `join` is the end of a build, which holds its recordings and the notes of one shard at a
time; `open` is what a training does first. Each run is a process of its own, the two in turn.
"""

import argparse
import hashlib
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
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import publish
from split import machine, spread

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

EACH, SHARD = 10, 6200  # segments of a recording and of a shard
PAYLOAD = 128 * 157 * 2  # bytes
SIZE = 1024 + SHARD * (PAYLOAD + 2048)
KINDS = {
    "join": "index, statistics, recordings, balance, dataset.json written",
    "open": "`open_set` and a row of the index, recordings not read",
    "choose": "the same, and the samples of a k-fold training chosen",
}


def about(n: int) -> dict[str, Any]:
    """What recording `n` is called and where it stands."""
    label, fold = n % 10, n // 2 % 5
    place = {"label": f"class-{label}", "group": f"s{n // 2:07d}", "fold": str(fold)}
    return {"path": f"class-{label}/s{n // 2:07d}/{n:07d}.wav", "split": "train", **place}


def notes_of(shard: int, segments: int) -> Any:
    """The notes that a shard would leave."""
    from shards.index import ROW
    from shards.notes import Notes

    numbers = np.arange(shard * SHARD, min(segments, (shard + 1) * SHARD))
    recording = numbers // EACH
    rows = np.zeros(len(numbers), ROW)
    rows["offset"] = 1024 + (numbers - numbers[0]) * (PAYLOAD + 2048)
    rows["start"], rows["shard"] = numbers % EACH, shard
    rows["recording"] = recording - recording[0]
    rows["label"], rows["fold"] = recording % 10, recording // 2 % 5
    facts = {"seconds": 50.0, "sample_rate": 16000, "channels": 1, "segments": EACH}
    facts |= {"clipped": 0.0, "dc": 0.0}
    lines = [
        json.dumps({**about(n), **facts, "xxh128": hashlib.md5(str(n).encode()).hexdigest()})
        for n in range(recording[0], recording[-1] + 1)
    ]
    sums = {(0, 0, 0): np.ones((3, 128))}
    return Notes(rows, lines, [], sums, SIZE, "0" * 64)


def join(folder: Path, segments: int) -> float:
    """Write the files beside the tars; seconds. The recordings are in memory, as in a build."""
    from shards.build import build
    from shards.dataset import Totals, write_dataset
    from shards.plan import Plan, make_recipe, settle
    from shards.recording import Recording

    header: dict[str, Any] = {"frames": 800000, "sample_rate": 16000, "channels": 1}
    flags = inspect.signature(build).parameters
    settings = settle(
        {n: flag.default for n, flag in flags.items() if flag.default is not flag.empty}
    )
    plan = Plan(
        recipe=make_recipe(folder, settings),
        out=folder,
        recordings=[Recording(**about(n), **header) for n in range(segments // EACH)],
        rejected=[],
        classes=[f"class-{n}" for n in range(10)],
        label_sets=[[n] for n in range(10)],
        folds=[str(n) for n in range(5)],
        method="made up",
        shards={},
        settings=settings,
        manifest="",
    )
    shards = range(-(-segments // SHARD))

    def notes() -> Iterator[Any]:
        return (notes_of(shard, segments) for shard in shards)

    for shard in shards:
        with open(folder / f"samples-{shard:06d}.tar", "wb") as tar:
            os.truncate(tar.fileno(), SIZE)
    began = time.perf_counter()
    plan = replace(plan, recordings=[])  # as a build does when its shards are written
    write_dataset(replace(plan, out=folder), Totals(plan, notes), notes)
    return time.perf_counter() - began


def start(folder: Path, choose: bool) -> float:
    """Open the set, and choose the samples of a training; seconds."""
    from shards.index import open_set
    from toolkit.protocol import part_masks, select

    began = time.perf_counter()
    shard_set = open_set(folder)
    assert shard_set.index[-1]["shard"] == len(shard_set.info["shards"]) - 1
    if choose:
        select(shard_set, part_masks(shard_set, "kfold", 0))
    return time.perf_counter() - began


def child(kind: str, folder: Path, segments: int) -> None:
    """One run; prints its seconds, and its peak memory in GB before and after."""
    import toolkit.protocol  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    took = join(folder, segments) if kind == "join" else start(folder, kind == "choose")
    print(json.dumps([took, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]))


def main() -> None:
    """Run all kinds in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--segments", type=int, default=10**7)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        return child(words.child, Path(words.folder), words.segments)
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(words.runs):
            for kind, runs in found.items():
                line = [sys.executable, __file__, f"--segments={words.segments}"]
                line += [f"--child={kind}", f"--folder={folder}"]
                done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
        sizes = [Path(folder, name).stat().st_size / 1e6 for name in ("index.npy", "dataset.json")]
    lines = [
        f"index.npy {sizes[0]:.0f} MB, dataset.json {sizes[1]:.1f} MB.",
        "",
        "| what | seconds, median (range) | peak GB | of it before (imports) | n |",
        "|---|---|---|---|---|",
    ]
    for kind, runs in found.items():
        took, before, peak = zip(*runs, strict=True)
        median = f"{statistics.median(took):.3f} ({min(took):.3f} to {max(took):.3f})"
        seconds = median if max(took) < 10 else spread(took)
        cells = f"{KINDS[kind]} | {seconds} | {max(peak):.2f} | {max(before):.2f}"
        lines.append(f"| {cells} | {len(runs)} |")
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    lines += ["", f"{date.today()}, {versions}; {machine()}."]
    publish("large", f"A set of {words.segments:,} made-up segments", lines, words.write)


if __name__ == "__main__":
    main()
