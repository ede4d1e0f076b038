"""How reading begins: the first batch of a million samples, also far on; shards from the disk.

    python bench/start.py [--rounds=5] [--samples=16384] [--frames=157] [--write]

From the disk, a file that was read is dropped from the kernel's cache before each pass, and `dd`
or `fio` (where it is installed) and our loader take turns; where a hypervisor or a disk caches too,
look at the spread, and at that of `dd` beside itself, which is the disk's own. A virtual machine
may hand free memory back to its host and wait for each page that it takes again (free page
reporting), longer than for the disk: so as much memory as a pass will take is written to before it.
"""

import json
import os
import shutil
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


def a_batch_of_webdataset(shard_set: ShardSet, count: int = 10) -> float:
    """Seconds a batch in this process; fast-forwarding takes as long."""
    batches = iter(webdataset(shard_set, 0))
    next(batches)
    began = perf_counter()
    for _ in range(count):
        next(batches)
    return (perf_counter() - began) / count


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
    """A pass over shards that are on the disk, beside what others take to read as much."""
    n = len(shard_set)
    bounds = np.append(np.arange(0, n, PER_SHARD), n)
    in_turn, full = InTurn(n), Order(n, BATCH, 0)
    windows = Order(n, BATCH, 0, draw=Window(bounds, 2, 0))
    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}
    disk, plain = partial(dd, shard_set), "dd bs=1M"
    for name, order in (("in turn", in_turn), ("windows of 2 shards", windows)):
        pairs[f"{name} : {plain}"] = disk, partial(whole_pass, shard_set, order)
    shuffled = partial(whole_pass, shard_set, full)
    if shutil.which("fio"):
        pairs["fully shuffled : fio, random reads of a sample"] = partial(fio, shard_set), shuffled
    pairs[f"fully shuffled : {plain}"] = disk, shuffled
    pairs[f"dd itself : {plain}"] = disk, disk
    found: dict[str, list[float]] = {name: [] for name in pairs}
    for _ in range(rounds):
        for name, pair in pairs.items():
            took = []
            for run in pair:
                from_the_disk(shard_set.shard_paths)
                took.append(run())
            found[name].append(took[0] / took[1])
    return [
        mark(f"from the disk, {name}", sorted(ratios), 0.9, "{:.0%}")
        for name, ratios in found.items()
    ]


def from_the_disk(files: list[Path]) -> None:
    """Have the kernel drop files from its cache, and hold memory for them."""
    for file in files:
        with open(file, "rb") as content:
            os.fsync(content.fileno())
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    size = sum(file.stat().st_size for file in files)
    memory = np.empty(5 * size // 4, np.uint8)
    memory[:: os.sysconf("SC_PAGE_SIZE")] = 1


def dd(shard_set: ShardSet) -> float:
    """Seconds that dd takes."""
    began = perf_counter()
    for file in shard_set.shard_paths:
        subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none"], check=True)
    return perf_counter() - began


def fio(shard_set: ShardSet) -> float:
    """Seconds that fio takes to read as many bytes, a sample at a time, 32 of them on their way."""
    files = shard_set.shard_paths
    size, sample = sum(file.stat().st_size for file in files), 2 * int(np.prod(shard_set.shape))
    words = {
        "name": "samples",
        "filename": ":".join(str(file).replace(":", r"\:") for file in files),
        "rw": "randread",
        "bs": -(-sample // 512) * 512,  # direct reads are of whole sectors
        "io_size": size,
        "direct": 1,
        "ioengine": "io_uring",
        "iodepth": 32,
        "allow_file_create": 0,
        "output-format": "json",
    }
    command = ["fio", "--readonly", *(f"--{name}={value}" for name, value in words.items())]
    done = subprocess.run(command, check=True, capture_output=True)
    return size / json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"]


def whole_pass(shard_set: ShardSet, order: Any) -> float:
    """Seconds that our loader takes."""
    began = perf_counter()
    for _ in ours(shard_set, order).steps(0, len(shard_set) // BATCH):
        pass
    return perf_counter() - began


def main() -> None:
    words = arguments(__doc__ or "", rounds=5, samples=16384, frames=157)
    one_thread()
    with tempfile.TemporaryDirectory() as place:
        for name in ("tars", "million"):
            (Path(place) / name).mkdir()
        shard_set = write_set(Path(place) / "tars", random_samples(words.samples, words.frames))
        rows = firsts(shard_set, Path(place) / "million", words.rounds)
        rows += cold(shard_set, words.rounds)
    about = f"{words.samples} samples of (128, {words.frames}), {PER_SHARD} a shard."
    if shutil.which("fio"):
        about += f" {subprocess.check_output(['fio', '--version'], text=True).strip()}."
    packages = ["numpy", "torch", "webdataset", "xxhash"]
    lines = [conditions(words.rounds, packages), about, *MARKS, *rows]
    publish("start", "How reading begins", lines, words.write)


if __name__ == "__main__":
    main()
