"""How reading begins: the first batch of a million samples, also far on; shards from the disk.

    python bench/start.py [--rounds=5] [--samples=32768] [--frames=157] [--write]

From the disk, a file that was read is dropped from the kernel's cache before each pass, and `dd`
and our loader take turns; where a hypervisor or a disk caches too, look at the spread, and at that
of `dd` beside itself, which is the disk's own.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from batches import BATCH, PER_SHARD, InTurn, open_rows, ours, random_samples, write_set
from peers import webdataset
from side_by_side import MARKS, arguments, conditions, mark, one_thread, publish

from shards.draws import Window
from shards.index import ShardSet
from shards.order import Order


def seconds(run: Callable[[], Any]) -> float:
    began = perf_counter()
    run()
    return perf_counter() - began


def a_batch_of_webdataset(shard_set: ShardSet, count: int = 10) -> float:
    """Seconds a batch in this process; fast-forwarding takes as long."""
    batches = iter(webdataset(shard_set, 0))
    next(batches)
    return seconds(lambda: [next(batches) for _ in range(count)]) / count


def firsts(shard_set: ShardSet, folder: Path, rounds: int) -> list[str]:
    """The first batch of a million samples, at the start and at step 10^6."""
    for tar in shard_set.shard_paths:
        (folder / tar.name).symlink_to(tar)
    rows = np.random.default_rng(0).choice(shard_set.index, 10**6)
    big = open_rows(folder, rows, shard_set.shape)
    forward = 10**6 * a_batch_of_webdataset(shard_set)
    lines = []
    for about, step in (
        ("first batch of 10^6 samples, ms", 0),
        ("the same at step 10^6, ms", 10**6),
    ):
        took = []
        for _ in range(rounds):
            began = perf_counter()
            opened = ShardSet(big.path, big.info)
            steps = ours(opened, Order(10**6, BATCH, 0)).steps(step, step + 10)
            next(steps)
            took.append(1e3 * (perf_counter() - began))
            steps.close()
        lines.append(mark(about, sorted(took), 50, "{:.1f}", most=True))
    ahead = sorted(1e3 * forward / x for x in took)
    return [*lines, mark("webdataset forwarded to step 10^6 (extrapolated) : ours", ahead, 100)]


def cold(shard_set: ShardSet, rounds: int) -> list[str]:
    """A pass over shards that are on the disk, beside dd."""
    files, n = shard_set.shard_paths, len(shard_set)
    bounds = np.append(np.arange(0, n, PER_SHARD), n)
    orders = {
        "in turn": InTurn(n),
        "windows of 2 shards": Order(n, BATCH, 0, draw=Window(bounds, 2, 0)),
        "fully shuffled": Order(n, BATCH, 0),
    }
    passes: dict[str, Callable[[], None]] = {
        name: partial(whole_pass, shard_set, order) for name, order in orders.items()
    }
    passes["dd itself"] = partial(dd, files)
    found: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, one in passes.items():
            took = []
            for run in (partial(dd, files), one):
                for file in files:
                    forget(file)
                took.append(seconds(run))
            found[name].append(took[0] / took[1])
    return [
        mark(f"from the disk, {name} : dd bs=1M", sorted(ratios), 0.9, "{:.0%}")
        for name, ratios in found.items()
    ]


def dd(files: list[Path]) -> None:
    for file in files:
        subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none"], check=True)


def whole_pass(shard_set: ShardSet, order: Any) -> None:
    for _ in ours(shard_set, order).steps(0, len(shard_set) // BATCH):
        pass


def forget(file: Path) -> None:
    """Have the kernel drop a file from its cache."""
    with open(file, "rb") as content:
        os.fsync(content.fileno())
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    words = arguments(__doc__ or "", rounds=5, samples=32768, frames=157)
    one_thread()
    with tempfile.TemporaryDirectory() as place:
        for name in ("tars", "million"):
            (Path(place) / name).mkdir()
        shard_set = write_set(Path(place) / "tars", random_samples(words.samples, words.frames))
        rows = firsts(shard_set, Path(place) / "million", words.rounds)
        rows += cold(shard_set, words.rounds)
    about = f"{words.samples} samples of (128, {words.frames}), {PER_SHARD} a shard."
    packages = ["numpy", "torch", "webdataset", "xxhash"]
    lines = [conditions(words.rounds, packages), about, *MARKS, *rows]
    publish("start", "How reading begins", lines, words.write)


if __name__ == "__main__":
    main()
