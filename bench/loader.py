"""Training batches from the page cache: our loader beside what people use, on the same samples.

Every contestant hands out batches of 256 samples, float16 of (128, frames), and their labels. Who
is not installed is left out: `pip install -e .[bench]`.

    python bench/loader.py [--rounds=5] [--cores=1,2] [--frames=157,250] [--write]
"""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from batches import BATCH, MELS, InTurn, ours, random_samples, write_set
from peers import PACKAGES, installed, makers
from side_by_side import (
    MARKS,
    Turn,
    arguments,
    conditions,
    mark,
    one_thread,
    publish,
)

from shards.feed import buffers
from shards.order import Order, share

SLOW = 1.5  # times as long as with its best number of workers: a peer is not asked again


def handed_out(loader: Any) -> Iterator[Any]:
    """Batches without an end, epoch after epoch."""
    while True:
        yield from loader


class Contestant(NamedTuple):
    """Who hands out batches: begun anew for each turn, so that nobody reads ahead in another's."""

    begin: Callable[[], Iterator[Any]]
    ahead: int  #: batches before the clock starts: what was read ahead, what stays in memory
    steps: int  #: batches under the clock


def take_turns(contestants: dict[str, Contestant], rounds: int) -> dict[str, list[Turn]]:
    """All once, and those that this leaves A B C A B C ..."""
    tried = {name: take_turn(each) for name, each in contestants.items()}
    kept = [name for name in contestants if not left_behind(name, tried)]
    turns: dict[str, list[Turn]] = {name: [] for name in kept}
    for _ in range(rounds):
        for name in kept:
            turns[name].append(take_turn(contestants[name]))
    return turns


def left_behind(name: str, tried: dict[str, Turn]) -> bool:
    """Whether another number of worker processes is much better, by wall and by CPU seconds."""
    peer, _, number = name.rpartition(", ")
    same = [turn for other, turn in tried.items() if other[:-1] == f"{peer}, "]
    return number.isdigit() and all(
        getattr(tried[name], clock) > SLOW * min(getattr(turn, clock) for turn in same)
        for clock in Turn._fields
    )


def take_turn(contestant: Contestant) -> Turn:
    """Begun anew, read a while, and then under the clock."""
    begin, ahead, steps = contestant
    stream = begin()
    for _ in range(ahead):
        next(stream)
    wall, cpu = perf_counter(), process_time() + elsewhere()
    for _ in range(steps):
        next(stream)
    turn = Turn(perf_counter() - wall, process_time() + elsewhere() - cpu)
    stream.close()  # type: ignore[attr-defined]
    del stream
    gc.collect()  # worker processes end with their iterator
    return turn


def elsewhere() -> float:
    """CPU seconds that living child processes have used so far."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(time.user + time.system for time in times)


def copies(samples: np.ndarray, threads: int) -> Iterator[int]:
    """Copy into buffers like a feed's, by as many threads."""
    size = buffers(samples[:BATCH].nbytes), BATCH, *samples.shape[1:]
    ring = torch.zeros(size, dtype=torch.float16).numpy()
    parts = [share(BATCH, n, threads) for n in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for step in count():
            at, buffer = step * BATCH % (len(samples) - BATCH), ring[step % len(ring)]

            def copy(part: range, at: int = at, buffer: np.ndarray = buffer) -> None:
                np.copyto(buffer[part.start : part.stop], samples[at:][part.start : part.stop])

            list(pool.map(copy, parts))
            yield BATCH


def contestants(folder: Path, samples: np.ndarray, steps: int) -> dict[str, Contestant]:
    """By name; a number in it is that of worker processes."""
    (folder / "tars").mkdir()
    shard_set = write_set(folder / "tars", samples)
    n, epoch = len(samples), len(samples) // BATCH
    cores = len(os.sched_getaffinity(0))
    found = {"memory copy": Contestant(lambda: copies(samples, cores), 2 * epoch, steps)}
    for name, order, words in (
        ("shards, in turn", InTurn(n), {}),
        ("shards, shuffled", Order(n, BATCH, 0), {}),
        ("shards, shuffled, in memory", Order(n, BATCH, 0), {"resident": "memory"}),
    ):
        loader = ours(shard_set, order, threads=cores, **words)
        found[name] = Contestant(partial(loader.steps, 0, 1 << 40), 2 * epoch, steps)
    first = ours(shard_set, Order(n, BATCH, 0), threads=cores)
    begin = partial(first.steps, 0, 1 << 40)
    found["shards, shuffled, first epoch"] = Contestant(begin, 2, epoch - 8)
    for name, make in makers(folder, shard_set, samples).items():
        for number in (0, 1, 2):  # two workers read four batches ahead
            begin = partial(lambda make, number: handed_out(make(number)), make, number)
            found[f"{name}, {number}"] = Contestant(begin, 6, epoch - 8)
    return found


def per_sample(runs: list[Turn], batches: int, clock: str) -> list[float]:
    return [getattr(run, clock) / (batches * BATCH) for run in runs]


def table(turns: dict[str, list[Turn]], steps: dict[str, int], sample: int) -> list[str]:
    """A Markdown table: rates and CPU time."""
    lines = ["| | samples/s | spread | GB/s | CPU us a sample |", "|---|---|---|---|---|"]
    for name, runs in turns.items():
        rates = sorted(1 / x for x in per_sample(runs, steps[name], "wall"))
        cpu = 1e6 * median(per_sample(runs, steps[name], "cpu"))
        lines.append(
            f"| {name} | {median(rates):,.0f} | {rates[0]:,.0f} to {rates[-1]:,.0f} | "
            f"{median(rates) * sample / 1e9:.2f} | {cpu:.2f} |"
        )
    return lines


def marks(turns: dict[str, list[Turn]], steps: dict[str, int]) -> list[str]:
    """What issue 5 asks for, against each peer's best number of workers."""
    each = {
        (name, clock): per_sample(runs, steps[name], clock)
        for name, runs in turns.items()
        for clock in Turn._fields
    }

    def times_faster(slow: str, fast: str, clock: str = "wall") -> list[float]:
        names = [name for name in turns if name.partition(",")[0] == slow]
        best = min(names, key=lambda name: median(each[name, clock]))
        pairs = zip(each[best, clock], each[fast, clock], strict=True)
        return sorted(a / b for a, b in pairs)

    lines = []
    for way in ("shards, shuffled", "shards, shuffled, in memory"):
        for peer, least in (
            ("webdataset", 25), ("npy files", 10), ("memmap", 3), ("litdata", 6), ("streaming", 6),
            ("datasets", 10),
        ):  # fmt: skip
            if any(name.startswith(f"{peer}, ") for name in turns):
                lines.append(mark(f"{peer} : {way}", times_faster(peer, way), least))
        cpu = times_faster("webdataset", way, "cpu")
        lines.append(mark(f"webdataset : {way}, CPU seconds", cpu, 20))
        lines.append(mark(f"{way} : memory copy", times_faster("memory copy", way), 0.7, "{:.0%}"))
    pairs = zip(each["shards, in turn", "wall"], each["shards, shuffled", "wall"], strict=True)
    lines.append(mark("shuffled : in turn", sorted(a / b for a, b in pairs), 0.95, "{:.0%}"))
    return lines


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    words = arguments(
        __doc__ or "", rounds=5, samples=8192, steps=100, cores="1,2", frames="157,250"
    )
    one_thread()
    cores = sorted(os.sched_getaffinity(0))
    packages = ["numpy", "torch", "webdataset", "xxhash", *(PACKAGES[x] for x in installed())]
    about = (
        "The number behind a name is that of worker processes; whom another number of them made "
        f"{SLOW} times as fast and as cheap in a first round is left out. Marks take the best."
    )
    for used in (int(number) for number in words.cores.split(",") if int(number) <= len(cores)):
        os.sched_setaffinity(0, cores[-used:])
        for frames in map(int, words.frames.split(",")):
            samples = random_samples(words.samples, frames)
            with tempfile.TemporaryDirectory() as place:
                found = contestants(Path(place), samples, words.steps)
                steps = {name: each.steps for name, each in found.items()}
                turns = take_turns(found, words.rounds)
            lines = [conditions(words.rounds, packages), about, ""]
            lines += table(turns, steps, samples[0].nbytes) + MARKS + marks(turns, steps)
            publish(
                f"loader-{used}-{frames}",
                f"Batches from the page cache: {used} core(s), samples of ({MELS}, {frames})",
                lines,
                words.write,
                f"loader.py --cores={used} --frames={frames} --rounds={words.rounds}",
            )


if __name__ == "__main__":
    main()
